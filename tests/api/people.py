"""What the tests of people's accounts share: browsers, and mailboxes."""

import re
from dataclasses import replace
from typing import Any

from chalicelib.metadata import audit
from tests.api.conftest import World
from tests.client import Answer, CoreClient
from tests.mail.mailers import Received, read

COOKIE = "openregistry-session"


def with_settings(world: World, **settings: Any) -> World:
    """The same registry with other settings."""
    context = replace(world.context, settings=replace(world.context.settings, **settings))
    return replace(world, context=context, client=CoreClient(context))


def mails(world: World, to: str = "") -> list[Received]:
    """The mail that was sent, the oldest first: to an address, or all."""
    world.context.afterwards.wait()
    files = sorted((world.context.settings.data_dir / "mail").glob("*.eml"))
    found = [read(file.read_bytes()) for file in files]
    return [each for each in found if to in ("", each.to)]


def secret_in(mail: Received) -> str:
    """The secret of the link in a mail."""
    [link] = re.findall(r"http\S+", mail.text)
    return str(re.fullmatch(r"http://localhost:5000/account#\w+=([\w-]{43})", link)[1])  # type: ignore[index]


def secret_to(world: World, to: str) -> str:
    """The secret of the link in the last mail to an address."""
    return secret_in(mails(world, to)[-1])


def events(world: World, account: int | None = None) -> list[str]:
    """What the audit log tells, the oldest first."""
    return [each.event for each in reversed(audit.page(world.context.database, 100, None, account))]


class Browser:
    """Keeps a cookie, as a browser does that came by plain HTTP."""

    def __init__(self, world: World, cookie: str = "") -> None:
        self.world = world
        self.cookie = cookie

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        if self.cookie:
            headers.setdefault("Cookie", f"{COOKIE}={self.cookie}")
        answer = self.world.call(method, path, body, **headers)
        for name, value in answer.fields:
            if name == "Set-Cookie":
                self.cookie = value.partition(";")[0].removeprefix(f"{COOKIE}=")
        return answer

    def sign_in(self, name: str, password: str) -> Answer:
        return self.call("POST", "/session", {"name": name, "password": password})

    def is_signed_in(self) -> bool:
        return self.call("GET", "/session").status == 200
