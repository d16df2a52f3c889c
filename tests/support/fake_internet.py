"""Name servers and hosts of a test's own: every connection ends at a server on this machine."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
TLS_PORTS = (443, 8443)


class ReroutedSocket(socket.socket):
    """A socket that says it has the family of the address, and connects to a local server."""

    def __init__(self, family, server):
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self._shown_family = family
        self._server = server

    @property
    def family(self):
        return self._shown_family

    def connect(self, address):
        super().connect(self._server)


@dataclass
class FakeInternet:
    """`names` has the addresses of each host. A list of lists changes with each look-up.

    `routes` are redirects by host and path. All other paths answer 200 with the path as text.
    """

    names: dict = field(default_factory=dict)
    routes: dict = field(default_factory=dict)
    connected: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    num_look_ups: dict = field(default_factory=lambda: defaultdict(int))
    servers: dict = field(default_factory=dict)

    def look_up(self, host, port):
        answers = self.names.get(host)
        if answers is None:
            answers = [numeric(host)]
        elif isinstance(answers[0], list):
            answers = answers[min(self.num_look_ups[host], len(answers) - 1)]
        self.num_look_ups[host] += 1
        return [address_info(address, port) for address in answers]

    def make_socket(self, info):
        address, port = info[4][:2]
        self.connected.append(address)
        return ReroutedSocket(info[0], self.servers[port in TLS_PORTS])

    async def answer(self, request):
        self.requests.append(request)
        location = self.routes.get((request.host.partition(":")[0], request.path))
        if location is not None:
            return web.Response(status=302, headers={"Location": location})
        return web.Response(text=request.raw_path, headers={"X-Method": request.method})


def numeric(host):
    """Read what libraries of old read as an address: `0x7f.1`, `017700000001`, `2130706433`."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError) as exc:
        raise socket.gaierror(socket.EAI_NONAME, "unknown name") from exc


def address_info(address, port):
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


@asynccontextmanager
async def running(internet, certificate=None):
    """Serve for the hosts of `internet`; with a `Certificate`, by TLS, too."""
    runner = web.AppRunner(web_app(internet.answer))
    await runner.setup()
    try:
        for is_tls in (False, True) if certificate else (False,):
            site = web.TCPSite(
                runner, "127.0.0.1", 0, ssl_context=certificate.server if is_tls else None
            )
            await site.start()
            internet.servers[is_tls] = runner.addresses[-1]
        internet.servers.setdefault(True, internet.servers[False])
        yield internet
    finally:
        await runner.cleanup()


def web_app(handler):
    async def answer(request):
        return await handler(request)

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


@asynccontextmanager
async def local_server(handler, port=0):
    """Run a server of this machine for `await handler(request)`; yields its port."""
    runner = web.AppRunner(web_app(handler), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(handle):
    """Run a server that speaks bytes: `await handle(reader, writer)`; yields its port."""

    async def answer(reader, writer):
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass(frozen=True)
class Certificate:
    """TLS settings of a server, and of a client that trusts it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_certificate(directory: Path, names):
    """Make a certificate for names and addresses that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pixpod tests")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "certificate.pem"
    encoding = serialization.Encoding.PEM
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(encoding)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Certificate(server=server, client=ssl.create_default_context(cafile=str(file)))


def general_name(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
