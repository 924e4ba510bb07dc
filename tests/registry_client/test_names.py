"""Names of registries and images."""

import pytest

from chalicelib.client.names import BadName, Reference, Registry

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "url"),
    [
        ("registry.example.org", "registry.example.org", "https://registry.example.org"),
        (
            "registry.example.org:5000",
            "registry.example.org:5000",
            "https://registry.example.org:5000",
        ),
        ("localhost:5000", "localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000", "http://[::1]:5000"),
        ("https://localhost:5000/", "localhost:5000", "https://localhost:5000"),
        ("http://registry.example.org", "registry.example.org", "http://registry.example.org"),
        ("docker.io", "docker.io", "https://registry-1.docker.io"),
    ],
)
def test_registries(text: str, host: str, url: str) -> None:
    assert Registry.parse(text) == Registry(host, url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://example.org",
        "example.org/group",
        "user@example.org",
        "a b",
        "example.org:99999",
        "-a",
    ],
)
def test_what_is_no_registry(text: str) -> None:
    with pytest.raises(BadName, match="no registry"):
        Registry.parse(text)


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest", "reference"),
    [
        ("r.example.org/app", "app", None, None, "latest"),
        ("r.example.org:5000/group/app:1.0", "group/app", "1.0", None, "1.0"),
        (f"r.example.org/app@{DIGEST}", "app", None, DIGEST, DIGEST),
        (f"localhost/app:1@{DIGEST}", "app", "1", DIGEST, DIGEST),
        ("docker.io/busybox:1", "library/busybox", "1", None, "1"),
        ("docker.io/group/app", "group/app", None, None, "latest"),
        ("http://registry/app", "app", None, None, "latest"),
    ],
)
def test_images(
    text: str, repository: str, tag: str | None, digest: str | None, reference: str
) -> None:
    image = Reference.parse(text)
    assert (image.repository, image.tag, image.digest) == (repository, tag, digest)
    assert image.reference == reference


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("busybox", "which registry"),
        ("group/app:1", "which registry"),
        ("r.example.org/", "no repository"),
        ("r.example.org/App", "no repository"),
        ("r.example.org/app:", "no tag"),
        ("r.example.org/app:a b", "no tag"),
        ("r.example.org/app@sha256", "no digest"),
    ],
)
def test_what_is_no_image(text: str, why: str) -> None:
    with pytest.raises(BadName, match=why):
        Reference.parse(text)


def test_an_image_is_shown_as_it_is_written() -> None:
    text = f"r.example.org:5000/group/app:1.0@{DIGEST}"
    assert str(Reference.parse(text)) == text
