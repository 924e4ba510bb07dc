"""What the harness needs of the functions that it runs."""

from dataclasses import dataclass
from enum import Enum
from threading import Event
from typing import TYPE_CHECKING, Protocol

from chalicelib import endpoints, tracing
from chalicelib.endpoints import Body
from chalicelib.http import Receiver, Request, Response

if TYPE_CHECKING:
    from chalicelib.context import Context


class Turn(Enum):
    """How a request comes to its answer, unless its body is streamed."""

    HEALTH = "health"
    READY = "ready"
    QUICK = "quick"
    BULK = "bulk"
    """On a thread of those that may wait for long."""


_TURNS: dict[endpoints.Function, Turn] = {
    endpoints.health: Turn.HEALTH,
    endpoints.ready: Turn.READY,
}
_PROBES = {row.path: _TURNS[row.function] for row in endpoints.ENDPOINTS if row.function in _TURNS}


class Functions(Protocol):
    """Every method but ``wants``, ``turn`` and ``health`` may block. None raises."""

    @property
    def limit(self) -> int:
        """The most bytes that a body has that is wanted whole."""

    def wants(self, request: Request) -> Body:
        """How a request's body is to be given to its function."""

    def turn(self, request: Request) -> Turn: ...

    def health(self, request: Request) -> Response:
        """That the process lives."""

    def ready(self, request: Request) -> Response:
        """Whether what the functions need can be used now; one answer for all who ask meanwhile."""

    def act(self, request: Request) -> Response:
        """Answer a request that has no body."""

    def answer(self, request: Request) -> Response:
        """Answer a request whose body is wanted whole, or not at all."""

    def receive(self, request: Request) -> Receiver | Response:
        """Who takes a body that is streamed, or a refusal of it."""

    def flush(self) -> None:
        """Write down what requests have left in memory. Called every few seconds."""

    def end(self) -> None:
        """Do what is to be done before the process ends, in few seconds; requests may be under
        way still."""

    def work(self, stop: Event) -> None:
        """Do jobs until told to stop."""


@dataclass(frozen=True)
class Registry:
    """The registry's functions."""

    context: "Context"

    @property
    def limit(self) -> int:
        return self.context.settings.manifest_limit

    def wants(self, request: Request) -> Body:
        endpoint = endpoints.find(request.method, request.path)
        return Body.NONE if endpoint is None else endpoint.body

    def turn(self, request: Request) -> Turn:
        method, path = request.method, request.path
        if method not in ("GET", "HEAD") and self.wants(request) is not Body.BUFFERED:
            return Turn.BULK
        if probe := _PROBES.get(path):
            return probe
        # A password takes long to be checked: those that are guessed must not delay small reads.
        slow = endpoints.waits(method, path) or self.context.access.hesitates(request)
        return Turn.BULK if slow else Turn.QUICK

    def health(self, request: Request) -> Response:
        return endpoints.health(self.context, request)

    def ready(self, request: Request) -> Response:
        return endpoints.ready(self.context, request)

    def act(self, request: Request) -> Response:
        if request.method not in ("POST", "PUT", "PATCH"):
            return endpoints.answer(self.context, request)
        if self.wants(request) is not Body.STREAMED:
            return endpoints.answer(self.context, request)
        receiver = endpoints.receive(self.context, request)
        return receiver if isinstance(receiver, Response) else receiver.finish()

    def answer(self, request: Request) -> Response:
        return endpoints.answer(self.context, request)

    def receive(self, request: Request) -> Receiver | Response:
        return endpoints.receive(self.context, request)

    def flush(self) -> None:
        self.context.pulls.flush()

    def end(self) -> None:
        self.flush()

    def work(self, stop: Event) -> None:
        from chalicelib.jobs.kinds import KINDS
        from chalicelib.jobs.worker import Worker

        Worker(self.context, KINDS).run(stop)
        tracing.stop()
