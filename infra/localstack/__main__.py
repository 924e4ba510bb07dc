"""`make localstack`: AWS on this machine with the registry deployed, until Ctrl-C.

With the address of a LocalStack in LOCALSTACK_ENDPOINT the registry is deployed into that one, its
functions beside it, else into ministack, which is started. What is pushed is gone at the end.
"""

import argparse
import os
import shlex
import signal
import socket
import tempfile
import time
import warnings
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from chalicelib.metadata.migrate import migrate
from infra.localstack.clouds import REGION, Cloud, LocalStack, Ministack
from infra.localstack.stack import deployed, remove
from tests.accounts import add_user
from tests.clients.build import DIRECTORY
from tests.jobs.receiver import Handler, Receiver
from tests.servers import Kubo, Postgres, answers, stopping

NAME, PASSWORD = "admin", "password"

TOLD = """
The registry is at http://{host}, with an administrator "{name}" whose password is "{password}".

  docker login --username {name} --password {password} {host}
  docker tag IMAGE {host}/hello/app
  docker push {host}/hello/app
  docker pull {host}/hello/app

As on AWS a request takes 4.5 MB at most; `openregistry push` and `openregistry proxy` send larger
layers to the bucket.

AWS is at {endpoint}:

  export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION={region}
  aws --endpoint-url {endpoint} s3 ls --recursive s3://{bucket}

An operator's commands need the settings in a file. Webhooks to {hooks} are printed here:

  set -a; . {settings}; set +a
  .venv/bin/openregistry webhook add {hooks} --event push --repository hello/app
{ipfs}
Ctrl-C ends all of it, and what was pushed is gone then.
"""
IPFS = """
An IPFS node is there too, and this is how images go to it:

  .venv/bin/openregistry repo visibility hello/app public
  .venv/bin/openregistry resolver choose --repository hello/app ipfs
  .venv/bin/openregistry resolve status --repository hello/app
"""
NO_IPFS = """
An IPFS node is started too once `make clients ARGS=ipfs` has built one.
"""


def main() -> None:
    """Start everything, tell what there is, and wait."""
    parser = argparse.ArgumentParser(prog="make localstack", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="where the registry is to serve")
    options = parser.parse_args()
    endpoint = os.environ.get("LOCALSTACK_ENDPOINT", "")
    if problem := _problem(options.port, endpoint):
        parser.error(problem)
    for name in [name for name in os.environ if name.startswith("OPENREGISTRY_")]:
        del os.environ[name]  # those of another registry
    warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # by the embedded Postgres
    # SIGHUP: its terminal was closed. SIGINT: a shell has what is in the background ignore it.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            _start(stack, options.port, endpoint)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        print("\nended")


def _problem(port: int, endpoint: str) -> str:
    """What is in the way, and what to do about it."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", "") or error
        return f'127.0.0.1:{port} cannot be had: {reason}; elsewhere: ARGS="--port 5001"'
    if not endpoint:
        return ""
    if urlsplit(endpoint).scheme not in ("http", "https"):
        return f"LOCALSTACK_ENDPOINT is no URL like http://127.0.0.1:4566, but {endpoint}"
    if not answers(f"{endpoint.rstrip('/')}/_localstack/health"):
        return f"no LocalStack answers at {endpoint}: start it, or unset LOCALSTACK_ENDPOINT"
    return ""


def _start(stack: ExitStack, port: int, endpoint: str) -> None:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="localstack-")))
    directory.chmod(0o755)  # Postgres runs as another user
    _say("starting Postgres")
    postgres = Postgres(directory / "postgres")
    stack.enter_context(stopping(postgres))
    database_url = postgres.start().new_database()
    migrate(database_url)
    account = {"OPENREGISTRY_DATABASE_URL": database_url}
    add_user(account, NAME, PASSWORD, administrator=True)

    receiver = stack.enter_context(closing(Receiver()))
    receiver.behave = _told
    settings = {"OPENREGISTRY_PRIVATE_WEBHOOKS": receiver.origin}
    ipfs = NO_IPFS
    if (program := DIRECTORY / "ipfs").exists():
        _say("starting an IPFS node")
        node = Kubo(directory / "ipfs", program)
        stack.enter_context(stopping(node))
        settings["OPENREGISTRY_IPFS_NODES"] = node.start().url
        ipfs = IPFS

    cloud = _cloud(stack, directory, endpoint)
    _say(f"packaging and deploying into {cloud.endpoint}")
    made = directory / "stack"
    made.mkdir()
    deployment = stack.enter_context(deployed(cloud, made, database_url, port, settings=settings))
    file = directory / "settings"
    file.write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in deployment.settings.items())
    )
    _say(
        TOLD.format(
            host=deployment.host,
            name=NAME,
            password=PASSWORD,
            endpoint=cloud.endpoint,
            region=REGION,
            bucket=deployment.bucket,
            hooks=receiver.origin,
            settings=file,
            ipfs=ipfs,
        )
    )


def _cloud(stack: ExitStack, directory: Path, endpoint: str) -> Cloud:
    if endpoint:
        cloud = LocalStack(endpoint)
        remove(cloud)  # what one that was killed has left
        stack.callback(remove, cloud)
        return cloud
    _say("starting ministack")
    server = Ministack(directory / "ministack")
    stack.enter_context(stopping(server))
    return server.start()


def _told(handler: Handler) -> None:
    """Print what a webhook tells."""
    request = handler.server.received.pop()
    _say(f"webhook: {request.body.decode(errors='replace')}")
    handler.answer(204)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
