"""Rules for URLs that callers name, and the targets that a deployment opens besides public ones.

`Targets.parse` applies the rules that need no I/O. `Targets.check` decides about an address and is
called for each socket before it is made. Knows no HTTP.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, urlsplit

from pixpod.errors import UrlRefused
from pixpod.inputs.addresses import (
    Address,
    Network,
    has_literal_only,
    is_literal_only,
    is_public,
)
from pixpod.inputs.refusals import Refused

SETTING = "PIXPOD_ALLOW_TARGETS"
MAX_URL_CHARACTERS = 8_192
MAX_SHOWN_CHARACTERS = 80
PORTS = (80, 443, 8080, 8443, 9000)
DEFAULT_PORTS = {"http": 80, "https": 443}

ENTRIES = "comma-separated [read:|write:|webhook:]HOST-or-NETWORK[:PORT]"

_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))

_HOST = "a host name, or an IP address in its usual form"
_PUBLIC = "a host with public addresses"


class Use(StrEnum):
    """Uses of a URL. The values are those of PIXPOD_ALLOW_TARGETS."""

    READ = "read"
    WRITE = "write"
    WEBHOOK = "webhook"

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes for targets that no setting opens."""
        return ("http", "https") if self is Use.READ else ("https",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL that keeps the rules. `host` is in ASCII, an IPv6 address without brackets.

    `url` may carry a signature, hence is kept out of `repr`.
    """

    use: Use
    scheme: str
    host: str
    port: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTarget:
    """An entry of PIXPOD_ALLOW_TARGETS. `port` None stands for 80 and 443."""

    use: Use
    host: str | Address | Network
    port: int | None

    def __str__(self) -> str:
        is_v6 = isinstance(self.host, IPv6Address | IPv6Network)
        host = f"[{self.host}]" if is_v6 else str(self.host)
        return f"{self.use}:{host}" + ("" if self.port is None else f":{self.port}")

    def opens(self, use: Use, port: int) -> bool:
        """Return whether this is an entry for the use and the port, whatever the host."""
        return use is self.use and (port == self.port or (self.port is None and port in (80, 443)))

    def has(self, host: str, address: Address | None) -> bool:
        """Return whether the host is this one; a name is, too, whose address lies in the network.

        `address` is None as long as it is not known.
        """
        if address is not None and is_literal_only(address):
            return self.host == address
        if isinstance(self.host, str):
            return self.host == host
        if isinstance(self.host, Network):
            return address is None or address in self.host
        return self.host == address


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets that callers may reach: public addresses, and those that the deployment opens.

    With `shows_setting`, a refusal says how to open the target. This is for desks and the emulator:
    callers of a deployment cannot change its settings.
    """

    opened: tuple[OpenedTarget, ...] = ()
    shows_setting: bool = False

    def parse(self, url: str, use: Use) -> Target:
        """Check a URL without any I/O. Raises Refused with UrlRefused."""
        if len(url) > MAX_URL_CHARACTERS:
            raise _refused(f"at most {MAX_URL_CHARACTERS} characters", f"{len(url)} characters")
        if _UNSAFE.search(url):
            raise _refused("a URL without spaces, backslashes and control characters")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as exc:  # brackets, ports, characters that normalise to others
            raise _refused(_HOST) from exc
        if parts.scheme not in DEFAULT_PORTS:
            raise _refused(f"a URL with {' or '.join(use.schemes)}", _shown(host))
        if "@" in parts.netloc:
            raise _refused("a URL without user and password", _shown(host))
        if parts.netloc.startswith("[") != (":" in host):
            raise _refused(_HOST, _shown(host))
        host = _clean_host(host)
        shown = f"[{host}]" if ":" in host else host
        if port is None:
            port = DEFAULT_PORTS[parts.scheme]
        elif port != DEFAULT_PORTS[parts.scheme]:
            shown = f"{shown}:{port}"
        path = quote(parts.path or "/", safe=_ASCII)
        query = f"?{quote(parts.query, safe=_ASCII)}" if parts.query else ""
        target = Target(
            use=use,
            scheme=parts.scheme,
            host=host,
            port=port,
            url=f"{parts.scheme}://{shown}{path}{query}",
        )
        self.check(target, _literal(host))
        return target

    def check(self, target: Target, address: Address | None) -> None:
        """Check a target at an address, or all but that if it is not known. Raises Refused."""
        if any(
            entry.opens(target.use, target.port) and entry.has(target.host, address)
            for entry in self.opened
        ):
            return
        schemes = target.use.schemes
        if address is not None and not is_public(address):
            accepted = _PUBLIC
        elif target.scheme not in schemes:
            accepted = f"a URL with {' or '.join(schemes)}"
        elif target.port not in PORTS:
            accepted = f"a port of {', '.join(map(str, PORTS))}"
        else:
            return
        raise _refused(accepted, target.host, self._hint(target, address))

    def _hint(self, target: Target, address: Address | None) -> str | None:
        if not self.shows_setting or (address is not None and is_literal_only(address)):
            return None
        host = _literal(target.host) or target.host
        entry = OpenedTarget(use=target.use, host=host, port=target.port)
        line = ",".join(map(str, (*self.opened, entry)))
        return f"to open it here, set {SETTING}={line}"


def parse_opened(entry: str) -> OpenedTarget:
    """Read an entry of PIXPOD_ALLOW_TARGETS. Raises ValueError("expected ...")."""
    found = re.fullmatch(
        r"(?:(?P<use>read|write|webhook):)?"
        r"(?P<host>\[[^\[\]]*\]|[^:\[\]]+|[^\[\]]*:[^\[\]]*:[^\[\]]*)(?::(?P<port>[^:]*))?",
        entry,
    )
    if found is None or "//" in entry:
        raise ValueError(f"expected {ENTRIES}")
    port = found["port"]
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) <= 65_535):
        raise ValueError("expected a port from 1 to 65535")
    return OpenedTarget(
        use=Use(found["use"] or Use.READ),
        host=_opened_host(found["host"]),
        port=None if port is None else int(port),
    )


def _opened_host(text: str) -> str | Address | Network:
    bare = text.removeprefix("[").removesuffix("]")
    if "/" in bare:
        try:
            network = ip_network(bare)
        except ValueError as exc:
            raise ValueError("expected a network such as 10.0.0.0/8") from exc
        if has_literal_only(network):
            raise ValueError("expected the literal address of a link-local or metadata target")
        return network
    try:
        host = _clean_host(bare.lower())
    except Refused as exc:
        raise ValueError(f"expected {ENTRIES}") from exc
    return _literal(host) or host


def _clean_host(host: str) -> str:
    """Return a host in ASCII. Raises Refused for numeric forms that only old libraries read."""
    if ":" in host:
        address = _literal(host)
        if address is None or "%" in host:
            raise _refused(_HOST, _shown(host))
        return str(address)
    name = (host if host.isascii() else _to_ascii(host)).lower().removesuffix(".")
    is_numeric = _NUMERIC.fullmatch(name.rpartition(".")[2]) is not None
    if not _NAME.fullmatch(name) or is_numeric != (_literal(name) is not None):
        raise _refused(_HOST, _shown(host))
    return name


def _to_ascii(host: str) -> str:
    import idna  # its tables take 30 ms, and few hosts need them

    try:
        return idna.encode(host[:1_000], uts46=True).decode("ascii")
    except UnicodeError as exc:
        raise _refused(_HOST, _shown(host)) from exc


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _shown(host: str) -> str | None:
    return host[:MAX_SHOWN_CHARACTERS] or None


def _refused(accepted: str, value: str | None = None, hint: str | None = None) -> Refused:
    return Refused(UrlRefused, accepted, value=value, hint=hint)
