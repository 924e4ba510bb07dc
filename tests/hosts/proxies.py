"""`openregistry proxy`, as a user starts it."""

from pathlib import Path

from tests.servers import OPENREGISTRY, Server, answers, free_port


class Proxy(Server):
    """A proxy of a registry, on a free port."""

    name = "proxy"

    def __init__(self, directory: Path, registry: str) -> None:
        super().__init__(directory)
        self.registry = registry
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address to put before a path."""
        return f"http://{self.host}"

    def command(self) -> list[str]:
        return [str(OPENREGISTRY), "proxy", self.registry, f"--listen={self.host}"]

    def ready(self) -> bool:
        return answers(self.url + "/health")
