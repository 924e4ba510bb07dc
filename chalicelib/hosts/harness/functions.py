"""What the harness needs of the functions that it runs."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from chalicelib import endpoints
from chalicelib.http import Receiver, Request, Response

if TYPE_CHECKING:
    from chalicelib.context import Context


class Wants(Enum):
    """How a request's body is to be given to its function."""

    NOTHING = "nothing"
    WHOLE = "whole"
    STREAM = "stream"


class Functions(Protocol):
    """Every method but ``wants`` may block. None raises."""

    @property
    def limit(self) -> int:
        """The most bytes that a body has that is wanted whole."""

    def wants(self, request: Request) -> Wants: ...

    def act(self, request: Request) -> Response:
        """Answer a request that has no body."""

    def answer(self, request: Request) -> Response:
        """Answer a request whose body is wanted whole, or not at all."""

    def receive(self, request: Request) -> Receiver | Response:
        """Who takes a body that is streamed, or a refusal of it."""

    def work(self) -> None:
        """Do what is to be done once in a while, whatever is asked."""


@dataclass(frozen=True)
class Registry:
    """The registry's functions."""

    context: "Context"

    @property
    def limit(self) -> int:
        return self.context.settings.manifest_limit

    def wants(self, request: Request) -> Wants:
        endpoint = endpoints.find(request.method, request.path)
        body = endpoints.Body.NONE if endpoint is None else endpoint.body
        return {
            endpoints.Body.NONE: Wants.NOTHING,
            endpoints.Body.BUFFERED: Wants.WHOLE,
            endpoints.Body.STREAMED: Wants.STREAM,
        }[body]

    def act(self, request: Request) -> Response:
        if request.method not in ("POST", "PUT", "PATCH"):
            return endpoints.answer(self.context, request)
        if self.wants(request) is not Wants.STREAM:
            return endpoints.answer(self.context, request)
        receiver = endpoints.receive(self.context, request)
        return receiver if isinstance(receiver, Response) else receiver.finish()

    def answer(self, request: Request) -> Response:
        return endpoints.answer(self.context, request)

    def receive(self, request: Request) -> Receiver | Response:
        return endpoints.receive(self.context, request)

    def work(self) -> None:
        from chalicelib.registry import uploads

        uploads.expire(self.context)
