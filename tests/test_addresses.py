import pytest

from chalicelib.addresses import client_address, is_in, is_secure, networks, one_client

TRUSTED = networks(["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"])
CLIENT = "203.0.113.9"
FORGED = "198.51.100.66"


@pytest.mark.parametrize("forwarded_for", [None, "", FORGED, f"{FORGED}, 10.0.0.1"])
@pytest.mark.parametrize("peer", [CLIENT, "2001:db8::1", "192.0.2.8", "", "/run/a.sock"])
def test_a_peer_that_is_not_trusted_is_the_client(peer: str, forwarded_for: str | None) -> None:
    assert client_address(peer, forwarded_for, TRUSTED) == peer


def test_nobody_is_trusted_by_default() -> None:
    assert client_address("10.0.0.1", FORGED, ()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        (CLIENT, CLIENT),
        (f"{FORGED}, {CLIENT}", CLIENT),
        (f"{FORGED},{CLIENT} , 10.9.9.9,\t192.0.2.7", CLIENT),
        (f"10.1.1.1, {CLIENT}", CLIENT),
        (f"{CLIENT}:65001", CLIENT),
        (f"{CLIENT}:65001, 10.0.0.2:443", CLIENT),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:DB8:0::1]:443", "2001:db8::1"),
        (f"{CLIENT}, fd00::2, [fd00::3]:80", CLIENT),
        (f"::ffff:{CLIENT}, ::ffff:10.0.0.3", CLIENT),
        ("fe80::1%eth0", "fe80::1"),
        # All of them are proxies: the first is as near as is known.
        ("10.2.2.2, 10.3.3.3", "10.2.2.2"),
        (None, "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_the_rightmost_that_is_no_proxy(forwarded_for: str | None, client: str) -> None:
    assert client_address("10.0.0.1", forwarded_for, TRUSTED) == client
    assert client_address("::ffff:10.0.0.1", forwarded_for, TRUSTED) == client


@pytest.mark.parametrize(
    "part",
    ["unknown", "_hidden", "", "999.1.1.1", "1.2.3", "[2001:db8::1", "[1.2.3.4]x", "::1::", "a:b:c",
     "1.2.3.4:x", "1.2.3.4:123456", "01.2.3.4", "2001:db8::1]:1", "\x00", "٣.1.1.1"],
)  # fmt: skip
def test_what_is_no_address_ends_the_walk(part: str) -> None:
    assert client_address("10.0.0.1", f"{FORGED}, {part}, 10.4.4.4", TRUSTED) == "10.4.4.4"
    assert client_address("10.0.0.1", f"{FORGED}, {part}", TRUSTED) == "10.0.0.1"


def test_is_in() -> None:
    assert is_in("10.0.0.1", TRUSTED)
    assert is_in("::ffff:10.0.0.1", TRUSTED)
    assert is_in("fd12::1%eth0", TRUSTED)
    assert not is_in("11.0.0.1", TRUSTED)
    assert not is_in("", TRUSTED)
    assert not is_in("10.0.0.1", ())


@pytest.mark.parametrize(
    ("field", "secure"),
    [
        ("https", True),
        ("HTTPS", True),
        ("https, http", True),
        ("http, https", False),
        ("http", False),
        ("", False),
        ("httpsx", False),
    ],
)
def test_is_secure(field: str, secure: bool) -> None:
    assert is_secure(field) is secure


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("", ""),
        ("nothing", "nothing"),
    ],
)
def test_one_client(address: str, client: str) -> None:
    assert one_client(address) == client
