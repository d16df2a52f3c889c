"""Rules for URLs that callers name, and targets that a deployment opens."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.urls import CLOSED_V4, CLOSED_V6

from pixpod.errors import UrlRefused
from pixpod.inputs.addresses import is_public
from pixpod.inputs.refusals import Refused
from pixpod.inputs.targets import Targets, Use, parse_opened


def opened(*entries, shows_setting=False):
    return Targets(opened=tuple(map(parse_opened, entries)), shows_setting=shows_setting)


def refusal(targets, url, use=Use.READ, address=None):
    """Return the refusal of a URL, at an address if one is given, or None."""
    try:
        target = targets.parse(url, use)
        if address is not None:
            targets.check(target, ip_address(address))
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize(
    ("entry", "url", "use", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1/", Use.READ, "127.0.0.1"),
        ("127.0.0.1", "https://127.0.0.1/", Use.READ, "127.0.0.1"),
        ("[::1]:5000", "http://[::1]:5000/", Use.READ, "::1"),
        ("read:minio:9000", "http://minio:9000/", Use.READ, "10.0.0.1"),
        ("write:minio:9000", "http://minio:9000/", Use.WRITE, "10.0.0.1"),
        ("write:MINIO.internal.", "http://minio.INTERNAL/", Use.WRITE, "10.0.0.1"),
        ("webhook:127.0.0.1:5000", "http://127.0.0.1:5000/", Use.WEBHOOK, "127.0.0.1"),
        ("write:10.0.0.0/8:9999", "http://minio:9999/", Use.WRITE, "10.1.2.3"),
        ("fd00::/8", "https://minio/", Use.READ, "fd12::1"),
        ("169.254.169.254", "http://169.254.169.254/", Use.READ, "169.254.169.254"),
        ("168.63.129.16", "http://168.63.129.16/", Use.READ, "168.63.129.16"),
        ("write:example.org:8000", "http://example.org:8000/", Use.WRITE, "93.184.216.34"),
    ],
)
def test_entry_opens_its_target(entry, url, use, address):
    assert refusal(Targets(), url, use, address) is not None
    assert refusal(opened(entry), url, use, address) is None


@pytest.mark.parametrize(
    ("entry", "url", "use", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/", Use.READ, "127.0.0.1"),
        ("127.0.0.1:8080", "http://127.0.0.1/", Use.READ, "127.0.0.1"),
        ("127.0.0.1", "http://127.0.0.2/", Use.READ, "127.0.0.2"),
        ("127.0.0.1", "http://localhost/", Use.READ, "127.0.0.2"),
        ("127.0.0.1", "http://127.0.0.1/", Use.WRITE, "127.0.0.1"),
        ("read:127.0.0.1", "https://127.0.0.1/", Use.WEBHOOK, "127.0.0.1"),
        ("write:127.0.0.1", "http://127.0.0.1/", Use.READ, "127.0.0.1"),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", Use.READ, "::ffff:127.0.0.1"),
        ("minio", "http://minio.internal/", Use.READ, "10.0.0.1"),
        ("minio", "http://minio/", Use.READ, "169.254.169.254"),
        ("minio", "http://minio/", Use.READ, "168.63.129.16"),
        ("minio", "http://minio/", Use.READ, "100.100.100.200"),
        ("minio", "http://minio/", Use.READ, "fd00:ec2::254"),
        ("0.0.0.0/0", "http://169.254.169.254/", Use.READ, "169.254.169.254"),
        ("100.64.0.0/10", "http://100.100.100.200/", Use.READ, "100.100.100.200"),
        ("fd00::/8", "http://[fd00:ec2::254]/", Use.READ, "fd00:ec2::254"),
        ("write:10.0.0.0/8:9999", "http://minio:9999/", Use.WRITE, "93.184.216.34"),
        ("write:10.0.0.0/8", "http://minio/", Use.WRITE, "93.184.216.34"),
    ],
)
def test_entry_opens_nothing_else(entry, url, use, address):
    assert refusal(opened(entry), url, use, address).error is UrlRefused


@given(st.ip_addresses())
def test_only_unicast_addresses_of_the_internet_are_public(address):
    """CPython's own table is an oracle in one direction: it calls too many addresses global."""
    if is_public(address):
        assert address.is_global and not address.is_multicast and not address.is_reserved


def test_closed_addresses_are_not_public_and_others_are():
    assert [each for each in (*CLOSED_V4, *CLOSED_V6) if is_public(ip_address(each))] == []
    public = [
        *("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1"),
        *("172.32.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1"),
    ]
    assert [each for each in public if not is_public(ip_address(each))] == []


@pytest.mark.parametrize(
    ("url", "use", "host", "accepted"),
    [
        ("https://a.org/?" + "a" * 9_000, Use.READ, "9015 characters", "at most 8192 characters"),
        ("https://a.org/?secret\n", Use.READ, None, "a URL without spaces, backslashes"),
        ("ftp://a.org/?secret", Use.READ, "a.org", "a URL with http or https"),
        ("http://a.org/?secret", Use.WRITE, "a.org", "a URL with https"),
        ("https://me:secret@a.org/", Use.READ, "a.org", "a URL without user and password"),
        ("https://a.org:22/?secret", Use.READ, "a.org", "a port of 80, 443, 8080, 8443, 9000"),
        ("https://a.org:x/?secret", Use.READ, None, "a host name, or an IP address in its usual"),
        ("https://2130706433/?secret", Use.READ, "2130706433", "a host name, or an IP address"),
        (f"https://{'a' * 99}!/?secret", Use.READ, "a" * 80, "a host name, or an IP address"),
        ("https://10.0.0.1/?secret", Use.READ, "10.0.0.1", "a host with public addresses"),
    ],
)
def test_refusal_names_host_and_rule_and_never_the_query(url, use, host, accepted):
    refused = refusal(Targets(), url, use)
    assert refused.value == host
    assert refused.accepted.startswith(accepted)
    assert "secret" not in f"{refused.problem('image')}"


@pytest.mark.parametrize(
    ("url", "use", "address", "line"),
    [
        ("http://127.0.0.1:5000/a", Use.READ, None, "read:127.0.0.1:5000"),
        ("http://localhost:8000/a", Use.READ, None, "read:localhost:8000"),
        ("http://localhost/a", Use.READ, "127.0.0.1", "read:localhost:80"),
        ("http://[::1]:5000/", Use.WEBHOOK, None, "webhook:[::1]:5000"),
        ("http://localhost:9000/", Use.WRITE, None, "write:localhost:9000"),
    ],
)
def test_line_that_is_shown_opens_the_target_and_keeps_the_others(url, use, address, line):
    targets = opened("write:minio:9000", shows_setting=True)
    value = f"write:minio:9000,{line}"
    hint = refusal(targets, url, use, address).hint
    assert hint == f"to open it here, set PIXPOD_ALLOW_TARGETS={value}"
    assert refusal(opened(*value.split(",")), url, use, address) is None


def test_line_is_shown_neither_to_callers_of_a_deployment_nor_for_metadata():
    assert refusal(opened(), "http://127.0.0.1:5000/").hint is None
    shown = opened(shows_setting=True)
    assert refusal(shown, "http://169.254.169.254/").hint is None
    assert refusal(shown, "http://metadata/", address="169.254.169.254").hint is None
