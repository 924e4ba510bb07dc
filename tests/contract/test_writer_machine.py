"""Writers of one upload in any order, stale ones among them, against the bytes they ought to
give."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chalicelib.storage import Writer
from tests.contract.stores import PART, Kept, Upload, everything, same

SIZES = st.sampled_from([0, 1, 1000, PART - 1, PART, PART + 1, 2 * PART])


@dataclass
class Request:
    """A request that runs: its writer, and what it was given."""

    writer: Writer
    data: bytearray = field(default_factory=bytearray)


class WriterMachine(RuleBasedStateMachine):
    """``newest`` is the request whose bytes count; those begun before it are stale."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept
        self.upload = Upload(kept.store)
        self.running: list[Request] = []
        self.newest: Request | None = None
        self.staged = False
        self.settled = False
        self.count = 0

    @precondition(lambda self: not self.settled and len(self.running) < 3)
    @rule(elsewhere=st.booleans())
    def begin(self, elsewhere: bool) -> None:
        self.newest = Request(self.upload.writer(self.kept.again() if elsewhere else None))
        self.running.append(self.newest)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), size=SIZES)
    def write(self, data: st.DataObject, size: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.count += 1
        piece = bytearray([self.count % 251]) * size
        request.data += piece
        request.writer.write([memoryview(piece)[: size // 2], memoryview(piece)[size // 2 :]])
        piece[:] = bytes(size)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), final=st.booleans())
    def close(self, data: st.DataObject, final: bool) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        staged = request.writer.close(final=final)
        if request is self.newest:
            self.newest = None
            self.staged, self.settled = True, final
            self.upload.sent += request.data
            self.upload.save(staged)
            assert staged.size == len(self.upload.sent)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        request.writer.abort()
        if request is self.newest:
            self.newest = None

    @precondition(lambda self: self.staged and self.newest is None)
    @rule(times=st.integers(1, 2))
    def complete(self, times: int) -> None:
        for _ in range(times):
            key = self.upload.complete()
        same(everything(self.kept.store, key), self.upload.sent)
        for request in self.running:
            request.writer.abort()
        for other in self.upload.keys:
            if other == key:
                self.kept.store.discard_leftovers(other)
            else:
                self.kept.store.discard(other)
        assert self.kept.names() == [key]
        same(everything(self.kept.store, key), self.upload.sent)
        self.kept.store.delete([key])
        self.upload = Upload(self.kept.store)
        self.running, self.newest, self.staged, self.settled = [], None, False, False

    def teardown(self) -> None:
        for request in self.running:
            request.writer.abort()
        self.upload.clear()
        assert self.kept.names() == []


def test_writers(kept_in_filesystem: Kept) -> None:
    _run(kept_in_filesystem, examples=25)


def test_writers_in_s3(kept_in_s3: Kept) -> None:
    _run(kept_in_s3, examples=8)


def _run(kept: Kept, examples: int) -> None:
    class Machine(WriterMachine):
        def __init__(self) -> None:
            super().__init__(kept)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            phases=[Phase.generate],  # to shrink a failure would move gigabytes
            suppress_health_check=list(HealthCheck),
        ),
    )
