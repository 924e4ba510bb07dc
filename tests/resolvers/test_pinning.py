"""A pinning service is told what the nodes keep, and what they keep no longer."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.kubo import Kubo
from chalicelib.resolvers.pinning import PinningService
from chalicelib.resolvers.placing import mend, place
from tests import servers
from tests.contract.resolvers import MIB, cid, given, noise
from tests.resolvers.faults import FaultyNode
from tests.resolvers.services import TOKEN, Refused, Service

ADDRESS = "/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
CONTENT = given(b"What the node keeps.")
CID = cid(CONTENT.data)


@pytest.fixture
def service() -> Iterator[Service]:
    with closing(Service()) as made:
        yield made


@pytest.fixture
def client(service: Service) -> PinningService:
    return PinningService(service.url, TOKEN)


@pytest.fixture
def node() -> Iterator[FaultyNode]:
    with closing(
        FaultyNode(
            add={"Hash": CID},
            pin_ls={"Keys": {}},
            pin_rm={},
            id={"Addresses": [ADDRESS] * 30},
            swarm_connect={},
        )
    ) as made:
        yield made


def test_a_pin_from_first_to_last(service: Service, client: PinningService) -> None:
    assert not client.keeps(CID)
    delegates = client.pin(CID, CONTENT.name, [ADDRESS])
    [made] = service.pins.values()
    assert made["pin"] == {
        "cid": CID,
        "name": f"openregistry {CONTENT.name}",
        "origins": [ADDRESS],
    }
    assert delegates == made["delegates"]
    assert client.keeps(CID)
    assert client.pin(CID, CONTENT.name, []) == []
    made["status"] = "pinned"
    assert client.pin(CID, CONTENT.name, []) == []
    assert len(service.pins) == 1
    client.unpin(CID)
    client.unpin(CID)
    assert service.pins == {}


def test_what_failed_is_asked_for_again(service: Service, client: PinningService) -> None:
    client.pin(CID, CONTENT.name, [])
    for pin in service.pins.values():
        pin["status"] = "failed"
    assert not client.keeps(CID)
    client.pin(CID, CONTENT.name, [])
    assert [(key, pin["status"]) for key, pin in service.pins.items()] == [("request-2", "queued")]


def test_pins_of_others_stay(service: Service, client: PinningService) -> None:
    service.add({"cid": CID, "name": "theirs"})
    service.add({"cid": CID})
    assert not client.keeps(CID)
    client.pin(CID, "x" * 300, [])
    assert len(service.pins) == 3
    client.unpin(CID)
    assert [pin["pin"].get("name") for pin in service.pins.values()] == ["theirs", None]


def test_what_a_service_refuses(service: Service, client: PinningService) -> None:
    with pytest.raises(ResolverError) as error:
        PinningService(service.url, "not-to-be-told").keeps(CID)
    assert "refused GET /pins: UNAUTHORIZED Access token is missing or invalid." in str(error.value)
    assert "not-to-be-told" not in str(error.value)
    service.trouble = Refused(409, "INSUFFICIENT_FUNDS")
    with pytest.raises(ResolverError, match="INSUFFICIENT_FUNDS"):
        client.pin(CID, CONTENT.name, [])


def test_what_is_no_service(service: Service) -> None:
    with pytest.raises(ResolverError, match="NOT_FOUND"):
        PinningService(service.url.removesuffix("/psa") + "/x", TOKEN).keeps(CID)
    ours = {"pin": {"cid": CID, "name": "openregistry x"}}
    answers: list[object] = [b"<html>", b"[]", {"results": [1]}, {"results": [ours]}]
    with closing(FaultyNode()) as other:
        for answer in answers:
            other.answers["/pins"] = answer
            with pytest.raises(ResolverError):
                PinningService(other.url, TOKEN).keeps(CID)


def test_the_nodes_and_the_service_keep_the_same(
    service: Service, client: PinningService, node: FaultyNode
) -> None:
    resolver = Kubo([node.url], (), client)
    assert place(resolver, CONTENT, CONTENT.digest) == CID
    [made] = service.pins.values()
    assert made["pin"]["origins"] == [ADDRESS]
    assert node.commands()[-2:] == ["id", "swarm/connect"]
    assert resolver.status(CONTENT.name, CID).lacking == 0
    resolver.unpin(CONTENT.name, CID)
    assert service.pins == {}


def test_a_service_that_is_down_is_told_later(
    service: Service, client: PinningService, node: FaultyNode, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = Kubo([node.url], (), client)
    service.trouble = Refused(503, "DOWN")
    with caplog.at_level(logging.WARNING):
        assert place(resolver, CONTENT, CONTENT.digest) == CID
    assert "DOWN" in caplog.text
    with pytest.raises(ResolverError, match="DOWN"):
        resolver.unpin(CONTENT.name, CID)
    resolver.check()
    service.trouble = None
    assert resolver.status(CONTENT.name, CID).lacking == 1
    added = node.commands().count("add")
    mend(resolver, CONTENT, CONTENT.digest, CID)
    assert node.commands().count("add") == added
    assert resolver.status(CONTENT.name, CID).lacking == 0


@pytest.mark.long
def test_a_service_fetches_from_the_nodes(new_kubo: Callable[[], servers.Kubo]) -> None:
    ours, theirs = new_kubo(), new_kubo()
    with closing(Service(theirs)) as service:
        resolver = Kubo([ours.url], (), PinningService(service.url, TOKEN))
        content = given(noise(3 * MIB))
        name = place(resolver, content, content.digest)
        servers.wait_until(lambda: service.statuses() == {name: "pinned"}, 30, lambda: "a pin")
        assert Kubo([theirs.url]).status(content.name, name).state == "there"


@pytest.mark.long
def test_our_double_is_one_to_another_client(kubo: servers.Kubo, tmp_path: Path) -> None:
    def remote(*words: str) -> str:
        return kubo.run("pin", "remote", *words, api=True).stdout

    with closing(Service()) as service:
        remote("service", "add", "double", service.url, TOKEN)
        try:
            place(Kubo([kubo.url]), CONTENT, CONTENT.digest)
            remote("add", "--service=double", "--name=theirs", "--background", CID)
            assert service.statuses() == {CID: "queued"}
            assert CID in remote("ls", "--service=double", f"--cid={CID}", "--status=queued,failed")
            remote("rm", "--service=double", f"--cid={CID}", "--status=queued,pinning")
            assert service.pins == {}
        finally:
            remote("service", "rm", "double")
