"""cosign: signatures and attestations with a local key, without a transparency log."""

import base64
import json
from pathlib import Path

import pytest

from tests.clients.programs import Run, client
from tests.images import make_image, write_layout
from tests.servers import Registry

pytestmark = pytest.mark.long


@pytest.fixture
def cosign(tmp_path: Path) -> Run:
    """cosign with a key pair, a signing configuration and a trusted root that name no service."""
    cosign = client("cosign", tmp_path, COSIGN_PASSWORD="secret")
    cosign("generate-key-pair")
    cosign("signing-config", "create", "--out=signing.json")
    cosign("trusted-root", "create", "--out=root.json")
    return cosign


@pytest.fixture
def image(registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name, by digest, of an image made with crane."""
    crane = client("crane", tmp_path)
    pushed = write_layout(tmp_path / "layout", [make_image((1000, 2000), request.node.name)])
    name = request.node.name.replace("_", "-")
    return crane("push", pushed, f"{registry.host}/cosign/{name}:1").strip()


SIGN = ("--key=cosign.key", "--signing-config=signing.json", "--trusted-root=root.json", "--yes")
VERIFY = ("--key=cosign.pub", "--trusted-root=root.json", "--insecure-ignore-tlog")
HTTP = "--allow-http-registry"


def test_sign_and_verify(cosign: Run, registry: Registry, image: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no signatures found"):
        cosign("verify", *VERIFY, HTTP, image)
    cosign("sign", *SIGN, HTTP, image)
    [verified] = json.loads(cosign("verify", *VERIFY, HTTP, image))
    digest = image.partition("@")[2]
    assert verified["critical"]["image"]["docker-manifest-digest"] == digest
    # The signature is a referrer, under no tag.
    assert client("crane", tmp_path)("ls", image.partition("@")[0]).split() == ["1"]

    (tmp_path / "other").mkdir()
    other = client("cosign", tmp_path / "other", COSIGN_PASSWORD="other")
    other("generate-key-pair")
    with pytest.raises(AssertionError, match="accepted signatures do not match"):
        cosign("verify", "--key=other/cosign.pub", *VERIFY[1:], HTTP, image)


def test_attest_and_verify(cosign: Run, registry: Registry, image: str, tmp_path: Path) -> None:
    for kind in ("spdxjson", "vuln"):
        (tmp_path / "predicate.json").write_text(json.dumps({"invocation": {"uri": kind}}))
        cosign("attest", *SIGN, f"--type={kind}", "--predicate=predicate.json", HTTP, image)
    for kind in ("spdxjson", "vuln"):
        verified = cosign("verify-attestation", *VERIFY, f"--type={kind}", HTTP, image)
        statement = json.loads(base64.b64decode(json.loads(verified)["payload"]))
        assert kind in json.dumps(statement["predicate"])
        assert statement["subject"][0]["digest"]["sha256"] == image.partition("@sha256:")[2]


def test_sign_under_a_tag(cosign: Run, registry: Registry, image: str, tmp_path: Path) -> None:
    """Signatures as cosign made them up to its version 2: images under tags of their own."""
    old = ("--key=cosign.key", "--new-bundle-format=false", "--use-signing-config=false")
    cosign("sign", *old, "--tlog-upload=false", "--yes", HTTP, image)
    verify = ("--key=cosign.pub", "--new-bundle-format=false", "--insecure-ignore-tlog")
    [verified] = json.loads(cosign("verify", *verify, HTTP, image))
    name, _, digest = image.partition("@")
    assert verified["critical"]["image"]["docker-manifest-digest"] == digest
    tags = client("crane", tmp_path)("ls", name).split()
    assert tags == ["1", f"{digest.replace(':', '-')}.sig"]
