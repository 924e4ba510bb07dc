"""The upload protocol against a model: any sequence of requests, right, wrong, repeated and cut
off, sent in turn to two processes' worth of the functions.

The model knows the bytes that an upload has acknowledged. Whatever happens, an answer is the
model's, a blob is there if and only if a PUT was answered with 201, and its bytes are the model's.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from chalicelib import endpoints
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.http import Headers, Query, Receiver, Request, Response
from chalicelib.registry import uploads
from tests.client import CoreClient, begin, sha256, sha512, with_query
from tests.images import make_bytes
from tests.registry.test_uploads import get

PART = 5 << 20


@dataclass(eq=False)
class Model:
    """What is known of one upload."""

    location: str
    digest: str = ""
    data: bytes = b""
    state: str = "open"
    staged: bool = False
    running: "list[Running]" = field(default_factory=list)


@dataclass(eq=False)
class Running:
    """A request of an upload whose body is on its way, and the bytes it has sent."""

    model: Model
    receiver: Receiver
    start: int
    sent: bytes
    newest: bool = True


class Uploads(RuleBasedStateMachine):
    """Uploads to one repository."""

    contexts: Sequence[Context]
    sizes: st.SearchStrategy[int]

    models = Bundle("models")
    bodies = Bundle("bodies")

    def __init__(self) -> None:
        super().__init__()
        self.repository = f"machine/{uuid.uuid4().hex}"
        self.clients = [CoreClient(context) for context in self.contexts]
        self.turn = 0
        self.committed: dict[str, bytes] = {}
        self.refused: set[str] = set()

    @property
    def client(self) -> CoreClient:
        """The processes take turns."""
        self.turn += 1
        return self.clients[self.turn % len(self.clients)]

    @initialize(target=models)
    def first(self) -> Model:
        return Model(begin(self.client, self.repository))

    @rule(target=models)
    def begin(self) -> Model:
        return Model(begin(self.client, self.repository))

    @rule(model=models, data=st.data(), framed=st.booleans())
    def patch(self, model: Model, data: st.DataObject, framed: bool) -> None:
        chunk = self.draw_bytes(data)
        headers = {}
        if framed and chunk:
            start = len(model.data)
            headers["Content-Range"] = f"{start}-{start + len(chunk) - 1}"
        answer = self.client.request("PATCH", model.location, chunk, headers)
        if model.state != "open":
            assert answer.status == 404
            return
        self.overtake(model)
        model.data += chunk
        model.staged = True
        assert answer.status == 202
        assert answer.headers["Range"] == f"0-{max(len(model.data) - 1, 0)}"
        self.move(model, answer.location)

    @rule(model=models, off=st.sampled_from([-3, -1, 1, 1000]), final=st.booleans())
    def wrong_offset(self, model: Model, off: int, final: bool) -> None:
        start = max(len(model.data) + off, 0)
        if start == len(model.data):
            return
        target, method = model.location, "PATCH"
        if final:
            method, target = "PUT", with_query(target, digest=sha256(model.data))
        headers = {"Content-Range": f"{start}-{start + 3}"}
        answer = self.client.request(method, target, b"data", headers)
        if model.state == "open":
            assert answer.status == 416
            assert answer.headers["Range"] == f"0-{max(len(model.data) - 1, 0)}"
        elif final and model.digest == sha256(model.data):
            assert answer.status == 201
        else:
            assert answer.status == 404

    @rule(model=models, data=st.data(), algorithm=st.sampled_from([sha256, sha512]))
    def put(self, model: Model, data: st.DataObject, algorithm: Any) -> None:
        last = self.draw_bytes(data)
        whole = model.data + last
        digest = algorithm(whole)
        answer = self.client.request("PUT", with_query(model.location, digest=digest), last)
        if model.state == "open":
            assert answer.status == 201
            self.overtake(model)
            model.data, model.state = whole, "committed"
            self.committed[digest] = whole
            model.digest = digest
        elif model.state == "committed" and digest == model.digest:
            assert answer.status == 201
        else:
            assert answer.status == 404

    @rule(model=models, last=st.binary(max_size=10))
    def put_wrong_digest(self, model: Model, last: bytes) -> None:
        digest = sha256(model.data + last + b"?")
        self.refused.add(digest)
        answer = self.client.request("PUT", with_query(model.location, digest=digest), last)
        assert answer.status == (400 if model.state == "open" else 404)
        if model.state == "open" and (last or not model.staged):
            self.overtake(model)

    @rule(model=models)
    def status(self, model: Model) -> None:
        answer = self.client.request("GET", model.location)
        if model.state == "open":
            assert answer.status == 204
            assert answer.headers["Range"] == f"0-{max(len(model.data) - 1, 0)}"
            self.move(model, answer.location)
        else:
            assert answer.status == 404

    @rule(model=models)
    def cancel(self, model: Model) -> None:
        answer = self.client.request("DELETE", model.location)
        assert answer.status == (204 if model.state == "open" else 404)
        if model.state == "open":
            self.overtake(model)
            model.state = "cancelled"

    @rule(model=consumes(models))
    def expire(self, model: Model) -> None:
        upload = model.location.partition("?")[0].rpartition("/")[2]
        context = self.client.context
        context.database.run(
            "UPDATE uploads SET expires_at = now() - interval '1 s' WHERE id = CAST(:id AS uuid)",
            id=upload,
        )
        uploads.expire(context)
        self.overtake(model)
        model.state = "gone"
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            target = with_query(model.location, digest=sha256(model.data))
            assert self.client.request(method, target).status == 404

    @rule(target=bodies, model=models, data=st.data())
    def open_patch(self, model: Model, data: st.DataObject) -> Running | None:
        """A PATCH that does not end yet."""
        path, _, query = model.location.partition("?")
        request = Request("PATCH", path, Query(query), Headers({"Transfer-Encoding": "chunked"}))
        receiver = endpoints.receive(self.client.context, request)
        if model.state != "open":
            assert isinstance(receiver, Response)
            assert receiver.status == 404
            return None
        assert not isinstance(receiver, Response)
        self.overtake(model)
        sent = self.draw_bytes(data)
        receiver.feed([sent[:10], sent[10:]])
        running = Running(model, receiver, len(model.data), sent)
        model.running.append(running)
        return running

    @rule(running=consumes(bodies))
    def finish_patch(self, running: Running | None) -> None:
        if running is None:
            return
        response = running.receiver.finish()
        model = running.model
        if running.newest:
            assert response.status == 202
            model.data += running.sent
            model.staged = True
            model.running.remove(running)
        else:
            assert response.status in (404, 416)

    @rule(running=consumes(bodies))
    def cut_off(self, running: Running | None) -> None:
        """The client vanishes; what the request sent never counts."""
        if running is not None:
            running.receiver.abort()

    @invariant()
    def blobs_are_what_was_acknowledged(self) -> None:
        for digest, data in self.committed.items():
            assert get(self.client, self.repository, digest) == data
        for digest in self.refused - self.committed.keys():
            assert get(self.client, self.repository, digest) is None

    def teardown(self) -> None:
        for context in self.contexts[:1]:
            context.database.run("UPDATE uploads SET expires_at = now() - interval '1 second'")
            uploads.expire(context)
            assert context.database.run("SELECT count(*) FROM upload_keys") == [[0]]
            rows = context.database.run(
                "SELECT key FROM blob_copies UNION ALL SELECT key FROM doomed_objects"
            )
            assert {key for key, _, _ in context.store.list()} == {key for (key,) in rows}

    def draw_bytes(self, data: st.DataObject) -> bytes:
        size = data.draw(self.sizes)
        return make_bytes(size, data.draw(st.integers(0, 3)))

    @staticmethod
    def overtake(model: Model) -> None:
        for running in model.running:
            running.newest = False
        model.running.clear()

    @staticmethod
    def move(model: Model, location: str) -> None:
        # Any Location of an open upload will do, the oldest too.
        if len(model.data) % 2:
            model.location = location


def _run(context: Context, sizes: st.SearchStrategy[int], examples: int) -> None:
    second = build_context(context.settings)
    machine = type("Machine", (Uploads,), {"contexts": (context, second), "sizes": sizes})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        second.database.close()


def test_uploads_to_a_folder(file_context: Context) -> None:
    _run(file_context, st.integers(0, 300), 30)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_uploads_to_a_folder_at_length(file_context: Context) -> None:
    _run(file_context, st.integers(0, 3000), 300)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_uploads_to_a_bucket(s3_context: Context) -> None:
    around_a_part = [0, 1, 100, PART - 1, PART, PART + 1, 2 * PART + 7]
    _run(s3_context, st.sampled_from(around_a_part), 25)
