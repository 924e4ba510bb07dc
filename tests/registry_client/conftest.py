"""What tests of the client share."""

from collections.abc import Callable, Iterator

import pytest

from tests.registry_client.script import Answer, Asked, Script

Start = Callable[[Callable[[Asked], Answer]], Script]


@pytest.fixture
def script() -> Iterator[Start]:
    """Start servers."""
    running: list[Script] = []

    def start(answer: Callable[[Asked], Answer]) -> Script:
        running.append(Script(answer))
        return running[-1]

    yield start
    for each in running:
        each.close()
