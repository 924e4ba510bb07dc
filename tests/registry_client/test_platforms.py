"""Which of an index's images serves a platform."""

import pytest

from chalicelib.client.names import BadName
from chalicelib.client.platforms import Platform, choose

OFFERED = (
    "linux/amd64/v3",
    "linux/amd64",
    "linux/arm/v5",
    "linux/arm/v6",
    "linux/arm64/v8",
    "windows/amd64",
    "linux/s390x",
)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v4", "linux/amd64/v3"),
        ("linux/amd64/v2", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/aarch64", "linux/arm64/v8"),
        ("linux/arm", "linux/arm/v6"),
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v5"),
        ("windows/amd64", "windows/amd64"),
        ("linux/arm/v4", None),
        ("linux/riscv64", None),
        ("darwin/arm64", None),
    ],
)
def test_choice(wanted: str, chosen: str | None) -> None:
    offered = [None, *map(Platform.parse, OFFERED)]
    place = choose(offered, Platform.parse(wanted))
    assert (None if place is None else str(offered[place])) == chosen


@pytest.mark.parametrize("text", ["amd64", "linux", "linux/", "linux/arm/v7/x", "Linux amd64"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(BadName, match="no platform"):
        Platform.parse(text)
