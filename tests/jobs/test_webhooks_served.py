"""What a receiver hears of a push to a registry that runs, with nobody's account."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from standardwebhooks import Webhook as Verifier

from tests.accounts import command
from tests.client import HTTPClient, push_image
from tests.images import make_image
from tests.jobs.receiver import Receiver
from tests.servers import Registry


@pytest.fixture
def server() -> Iterator[Receiver]:
    with closing(Receiver()) as started:
        yield started


def test_a_push_arrives(serve: Callable[..., Registry], server: Receiver) -> None:
    registry = serve(OPENREGISTRY_ACCESS="open", OPENREGISTRY_PRIVATE_WEBHOOKS=server.origin)
    client = HTTPClient(registry.host)
    push_image(client, "test/app", make_image([100], seed=1), "v1")
    where = ("--repository", "test/app")
    hook = command(registry.settings, "webhook", "add", server.origin, "--event", "push", *where)
    digest = push_image(client, "test/app", make_image([100], seed=2), "v1")
    [request] = server.wait(1)
    told = Verifier(hook["secret"]).verify(request.body, request.headers)
    assert told["type"] == "org.openregistry.push"
    assert told["source"] == registry.url.replace("127.0.0.1", "localhost")
    data = told["data"]
    assert (data["repository"], data["digest"], data["tags"]) == ("test/app", digest, ["v1"])

    trigger = command(registry.settings, "trigger", "add", "retention", *where)
    path = trigger["url"].partition("/hooks/")[2]
    answer = client.request("POST", f"/hooks/{path}", b"{}", {"webhook-id": "1"})
    assert answer.status == 401
