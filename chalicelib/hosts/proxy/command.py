"""`openregistry proxy`."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from chalicelib import __version__
from chalicelib.cli import CommandError, Commands
from chalicelib.settings import Address, Settings, is_loopback, read_address

if TYPE_CHECKING:
    from chalicelib.client.names import Registry
    from chalicelib.hosts.harness.supervisor import Supervisor

LISTEN = "127.0.0.1:5001"
DRAIN_SECONDS = 2
"""How long requests may go on once the proxy is told to end: a layer that is cut goes on at the
next push."""
VARIABLE = "OPENREGISTRY_PROXY"
"""Holds HOST:PORT for the command of ``--once``."""


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    parser = commands.add_parser(
        "proxy",
        help="pass a registry on to clients of this machine, and their layers in parts",
        usage="openregistry proxy [-h] [--listen HOST:PORT] REGISTRY [--once -- COMMAND ...]",
        description="Listen here for docker, podman and any other client, and pass what they "
        "push and pull on to REGISTRY, with their own credentials. Layers go straight to its "
        "storage, in parts, where it takes direct uploads: so they may be of any size, and a push "
        "that was cut goes on where it was. Until Ctrl-C or SIGTERM.",
    )
    parser.add_argument(
        "registry", metavar="REGISTRY", help="the registry: HOST, HOST:PORT, or a URL of one"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_address,
        default=LISTEN,
        help=f"where to listen; port 0 is a free one (default: {LISTEN})",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="run the command after --, with the proxy's address in its environment as "
        f"{VARIABLE}, and end with it and with its exit status",
    )
    parser.set_defaults(run=proxy)
    parse = parser.parse_known_args

    def parse_before_command(words: Any, namespace: Any = None) -> Any:
        """What comes after the first -- is the command's; argparse would sort it among its own."""
        at = words.index("--") if "--" in words else len(words)
        options, unknown = parse(words[:at], namespace)
        options.command = words[at + 1 :]
        if options.once != bool(options.command):
            parser.error("--once and a command go together: --once -- docker push IMAGE")
        return options, unknown

    parser.parse_known_args = parse_before_command  # type: ignore[assignment, method-assign]


def proxy(options: argparse.Namespace) -> int:
    """Run the proxy."""
    from chalicelib.client.names import BadName, Registry
    from chalicelib.client.progress import Progress
    from chalicelib.hosts.harness import supervisor
    from chalicelib.hosts.proxy.functions import Proxy

    try:
        registry = Registry.parse(options.registry)
    except BadName as error:
        raise CommandError(str(error)) from None
    logging.basicConfig(level=logging.WARNING, format="openregistry: %(message)s", force=True)
    # A pool that is full is no news: there are more threads than connections that stay open.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    wants_login = _probe(registry)
    try:
        listener = supervisor.listen(options.listen)
    except OSError as error:
        raise CommandError(
            f"{options.listen} cannot be listened on: {error.strerror}; name another by --listen"
        ) from error
    with listener:
        address = Address(*listener.getsockname()[:2])
        drain = 0 if options.once else DRAIN_SECONDS
        settings = Settings(listen=address, work=False, shutdown_timeout=drain)
        if not is_loopback(address.host):
            _say(
                f"warning: other machines reach {address}, and credentials travel there without TLS"
            )
        # What the command of --once shows is for the person; the proxy's own bars would disturb.
        functions = Proxy(registry, options.listen.host, Progress(quiet=options.once))
        running = supervisor.Supervisor(functions, settings, listener, 1)
        if options.once:
            return _run_once(options.command, _shown(address), running)
        _announce(registry, _shown(address), wants_login=wants_login)
        running.run()
    return 0


def _address(text: str) -> Address:
    try:
        return read_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _probe(registry: "Registry") -> bool:
    """Whether the registry wants a login. Raises ``CommandError`` where there is none."""
    from chalicelib.client.remote import Remote, RemoteError

    try:
        with Remote(registry) as remote:
            reply = remote.send("GET", "/v2/", authorization="", attempts=2, silence=15)
    except RemoteError as error:
        raise CommandError(error.sentence.rstrip(".")) from None
    challenge = "www-authenticate" in reply.headers
    if not (reply.status == 200 or (reply.status == 401 and challenge)):
        raise CommandError(
            f"{registry.url} is no registry: it answers {reply.status} at /v2/, not 200, nor 401"
            " with a challenge"
        )
    if reply.status == 200 and "html" in reply.headers.get("content-type", ""):
        raise CommandError(f"{registry.url} is no registry: it answers with a web page at /v2/")
    return challenge


def _shown(address: Address) -> str:
    """The address as images are named by it: docker takes localhost for a registry without TLS."""
    return f"localhost:{address.port}" if address.host == "127.0.0.1" else str(address)


def _announce(registry: "Registry", name: str, *, wants_login: bool) -> None:
    """Say where it listens, with the first thing to try."""
    print(
        f"OpenRegistry {__version__}: {name} is {registry.host} now. Ctrl-C ends it.\n"
        f"What you push to {name}/NAME lands in {registry.host}/NAME:\n\n"
        + (f"    docker login {name}\n" if wants_login else "")
        + f"    docker tag IMAGE {name}/NAME\n"
        f"    docker push {name}/NAME\n"
        f"    docker pull {name}/NAME\n",
        flush=True,
    )


def _run_once(words: list[str], name: str, running: "Supervisor") -> int:
    """Run a command beside the proxy until either ends; gives the command's exit status. Raises
    ``CommandError`` where it cannot be run."""
    child: subprocess.Popen[bytes] | None = None
    problem: OSError | None = None

    def end_with_it(command: "subprocess.Popen[bytes]") -> None:
        command.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    def begin() -> None:
        nonlocal child, problem
        try:
            child = subprocess.Popen(words, env={**os.environ, VARIABLE: name})
        except OSError as error:
            problem = error
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            threading.Thread(target=end_with_it, args=(child,), daemon=True).start()

    running.run(begin)
    if child is None:
        raise CommandError(f"{words[0]} cannot be run: {problem and problem.strerror}")
    child.terminate()
    status = child.wait()
    # A shell's way to tell which signal ended it.
    return 128 - status if status < 0 else status


def _say(sentence: str) -> None:
    print(f"openregistry: {sentence}", file=sys.stderr, flush=True)
