"""URLs that the guarded client must refuse, and URLs that it must not."""

from dataclasses import dataclass, field

from support.fake_internet import PUBLIC, PUBLIC_V6

from pixpod.inputs.targets import Use

CLOSED_V4 = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)

CLOSED_V6 = (
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2606:2800:21f::5efe:7f00:1",
    "2606:2800:21f::200:5efe:a9fe:a9fe",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
)

NOTATIONS = (
    "127.1",
    "127.0.1",
    "0",
    "0.0",
    "2130706433",
    "02130706433",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.0.0.01",
    "127.000.000.001",
    "0x7f000001",
    "0X7F000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "127.0x1",
    "0x7f.0.0x0.1",
    "4294967295",
    "4294967296",
    "127.0.0.256",
    "127.0.0.1.",
    "127.0.0.1..",
    "1.1.1.1.1",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
    "127\u30020\u30020\u30021",
    "127\uff0e0\uff0e0\uff0e1",
    "\u0661\u0662\u0667.0.0.1",
    "%31%32%37.0.0.1",
    "127.0.0.1%2f.example.org",
    "localhost%00.example.org",
    "127.0.0.1%20",
    "[::1%25eth0]",
    "[::1%eth0]",
    "[fe80::1%25lo]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[127.0.0.1]",
    "[v1.example]",
    "[::1",
    "::1]",
    "[]",
    "[::1]example.org",
)

WRONG = (
    "",
    " ",
    "example.org",
    "//example.org/a.png",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://example.org/a.png",
    "gopher://example.org:80/_GET",
    "dict://example.org:80/",
    "ldap://example.org/",
    "jar:http://example.org/a!/b",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "ws://example.org/",
    "s3://bucket/key",
    "http:example.org",
    "http:/example.org",
    "http://",
    "http:///a.png",
    "https://?a",
    "https://#a",
    "http://.example.org/",
    "http://example..org/",
    "http://-example.org/",
    "http://example-.org/",
    "http://exa mple.org/",
    "http://exa_mple!.org/",
    f"http://{'a' * 64}.org/",
    f"http://{'a.' * 130}org/",
    "http://xn--/",
    "http://\u2100.org/",
    "http://example.org\u2028/",
    "http://exa\u00admple\ud800.org/",
    "https://user@example.org/",
    "https://user:secret@example.org/",
    "https://:@example.org/",
    "https://@example.org/",
    "https://example.org@127.0.0.1/",
    "https://127.0.0.1@example.org/",
    "https://example.org\\@127.0.0.1/",
    "https://127.0.0.1\\.example.org/",
    "https:\\\\example.org/",
    "https://example.org\t/",
    "https://example.org/\r\nHost: 127.0.0.1",
    "https://example.org/\x00",
    "https://example.org/\x7f",
    "https://example.org/\x85",
    "https://example.org/a b.png",
    "\thttps://example.org/",
    "https://example.org/\n",
    "http://example.org:0/",
    "http://example.org:22/",
    "http://example.org:25/",
    "http://example.org:81/",
    "http://example.org:6379/",
    "http://example.org:8000/",
    "https://example.org:65536/",
    "https://example.org:-1/",
    "https://example.org:+443/",
    "https://example.org:\uff14\uff14\uff13/",
    "https://example.org:443:80/",
    "https://example.org:80a/",
    "http://127.0.0.1:80:80/",
    f"https://example.org/{'a' * 8_192}",
)


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A URL, the answers of name servers, and redirects by host and path."""

    url: str
    use: Use = Use.READ
    names: dict = field(default_factory=dict)
    routes: dict = field(default_factory=dict)


def _named(*answers):
    return Hostile(url="https://rebind.example/a.png", names={"rebind.example": list(answers)})


def _redirect(location, **names):
    host = "redirect.example"
    routes = {(host, "/"): location}
    names = {name.replace("_", "."): addresses for name, addresses in names.items()}
    return Hostile(url=f"http://{host}/", names={host: [PUBLIC], **names}, routes=routes)


def _bracketed(address):
    return f"[{address}]" if ":" in address else address


HOSTILE = (
    *(Hostile(url=f"http://{_bracketed(each)}/") for each in (*CLOSED_V4, *CLOSED_V6)),
    *(Hostile(url=f"http://{each}/latest/meta-data/") for each in NOTATIONS),
    *(Hostile(url=each, names={"example.org": [PUBLIC]}) for each in WRONG),
    *(_named(each) for each in (*CLOSED_V4[::3], *CLOSED_V6[::3])),
    _named(PUBLIC, "127.0.0.1"),
    _named("127.0.0.1", PUBLIC),
    _named(PUBLIC_V6, "::1"),
    _named(PUBLIC, "fe80::1%eth0"),
    Hostile(url="http://localhost/", names={"localhost": ["127.0.0.1", "::1"]}),
    Hostile(url="http://LOCALHOST./", names={"localhost": ["127.0.0.1"]}),
    Hostile(
        url="http://metadata.google.internal/", names={"metadata.google.internal": [CLOSED_V4[12]]}
    ),
    Hostile(url="http://pod.runpod.internal:8080/", names={"pod.runpod.internal": ["10.1.2.3"]}),
    *(_redirect(f"http://{_bracketed(each)}/") for each in (*CLOSED_V4[::4], *CLOSED_V6[::4])),
    *(_redirect(f"http://{each}/") for each in NOTATIONS[::5]),
    _redirect("//127.0.0.1/"),
    _redirect("file:///etc/passwd"),
    _redirect("http://redirect.example:22/"),
    _redirect("http://user:secret@redirect.example/next"),
    _redirect("http://[::1"),
    _redirect("http://inside.example/", inside_example=["10.0.0.1"]),
    _redirect("/"),
    Hostile(
        url="http://turns.example/",
        names={"turns.example": [[PUBLIC], ["169.254.169.254"]]},
        routes={("turns.example", "/"): "/again"},
    ),
    Hostile(
        url="https://down.example/",
        names={"down.example": [PUBLIC]},
        routes={("down.example", "/"): "http://down.example/a.png"},
    ),
    Hostile(url="http://example.org/", use=Use.WRITE, names={"example.org": [PUBLIC]}),
    Hostile(url="http://example.org/", use=Use.WEBHOOK, names={"example.org": [PUBLIC]}),
    Hostile(url="https://127.0.0.1/", use=Use.WEBHOOK),
    Hostile(url="https://inside.example/", use=Use.WRITE, names={"inside.example": ["10.0.0.1"]}),
)


@dataclass(frozen=True, kw_only=True)
class Legitimate:
    """A URL and the path, or the whole URL, that the host must receive."""

    url: str
    path: str
    use: Use = Use.READ
    names: tuple = ("example.org",)
    routes: dict = field(default_factory=dict)
    addresses: tuple = (PUBLIC,)


SIGNED = (
    "/bucket/a%20b/%C3%A9%2Fc.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2F20260101"
    "%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=0aF~&response-content-type=image%2Fpng+x"
)

LEGITIMATE = (
    Legitimate(url="https://example.org/a.png", path="/a.png"),
    Legitimate(url="http://example.org/a.png", path="/a.png"),
    Legitimate(url="HTTPS://EXAMPLE.org/A.png", path="/A.png"),
    Legitimate(url="https://example.org", path="/"),
    Legitimate(url="https://example.org?a=1", path="/?a=1"),
    Legitimate(url="https://example.org./a.png", path="/a.png"),
    Legitimate(url="https://example.org:443/a.png", path="/a.png"),
    Legitimate(url="https://example.org:8443/a.png", path="/a.png"),
    Legitimate(url="http://example.org:8080/a.png", path="/a.png"),
    Legitimate(url="http://example.org:9000/bucket/a.png", path="/bucket/a.png"),
    Legitimate(url=f"https://example.org{SIGNED}", path=SIGNED),
    Legitimate(url="https://example.org/a.png#fragment", path="/a.png"),
    Legitimate(url="https://example.org/@user/a:b;c,d", path="/@user/a:b;c,d"),
    Legitimate(url="https://example.org/http://127.0.0.1/", path="/http://127.0.0.1/"),
    Legitimate(url="https://example.org/?u=http://127.0.0.1/", path="/?u=http://127.0.0.1/"),
    Legitimate(url="https://example.org/caf\u00e9/\u7d75.png", path="/caf%C3%A9/%E7%B5%B5.png"),
    Legitimate(url="https://example.org/a/../b/./c", path="/a/../b/./c"),
    Legitimate(url="https://example.org/a?b?c=&d", path="/a?b?c=&d"),
    Legitimate(url="https://b\u00fccher.example/", path="/", names=("xn--bcher-kva.example",)),
    Legitimate(url="https://xn--bcher-kva.example/", path="/", names=("xn--bcher-kva.example",)),
    Legitimate(
        url="https://my_bucket.s3.example.org/", path="/", names=("my_bucket.s3.example.org",)
    ),
    Legitimate(url="https://1password.example/", path="/", names=("1password.example",)),
    Legitimate(url=f"http://{PUBLIC}/a.png", path="/a.png"),
    Legitimate(url=f"https://{PUBLIC}/a.png", path="/a.png"),
    Legitimate(url=f"http://[{PUBLIC_V6}]/a.png", path="/a.png", addresses=(PUBLIC_V6,)),
    Legitimate(url="https://example.org/", path="/", addresses=(PUBLIC, PUBLIC_V6)),
    Legitimate(url=f"https://example.org/{'a' * 8_000}", path=f"/{'a' * 8_000}"),
    Legitimate(
        url="https://example.org/1",
        path="/6",
        routes={("example.org", f"/{n}"): f"/{n + 1}" for n in range(1, 6)},
    ),
    Legitimate(
        url="http://example.org/up",
        path="/secure",
        routes={("example.org", "/up"): "https://example.org/secure"},
    ),
    Legitimate(url="https://example.org/put?sig=%2B", path="/put?sig=%2B", use=Use.WRITE),
    Legitimate(url="https://example.org/hook", path="/hook", use=Use.WEBHOOK),
)
