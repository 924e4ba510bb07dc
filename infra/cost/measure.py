"""What a push, a pull and an idle minute take: counted where Lambda's own runtime client runs the
functions, and where `openregistry serve` does it all.

Requests, round trips and operations of storage are the same on every machine. Time is told as
that of processors, which depends little on what else the machine does.
"""

import json
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.cost.model import Figures, Image
from tests.bench.processes import cpu_seconds, tree
from tests.clients.test_docker import remove_images
from tests.hosts.lambda_jobs import SCHEDULED, TIMEOUT, LambdaJobs, Queue
from tests.hosts.lambda_registry import PASSWORD, USER, LambdaRegistry, migrated
from tests.hosts.lambda_runtime import Function
from tests.images import Content, image_of, make_layer, write_layout
from tests.metadata.relay import Relay
from tests.servers import OPENREGISTRY, S3, DockerEngine, Postgres, Registry, run, stopping
from tests.storage.faults import FaultyProxy

TIMES = 3
"""How often each thing is done; what counts is the mean."""
SETTLED = 3.0
"""Seconds after which nothing more comes of what was done."""

RECURRING = 5
"""Minutes after which most recurring jobs come again (``chalicelib/jobs/kinds.py``). Some come
seldom; they are counted as if they came as often."""

READS = {"GetObject", "HeadObject", "HeadBucket"}
FREE = {"DeleteObject", "AbortMultipartUpload"}
"""Of S3's operations; all others are priced as writes."""

Count = Callable[[], dict[str, float]]


def measure(image: Image, times: int = TIMES, *, functions_alone: bool = False) -> Figures:
    """Measure everything, or functions alone. It takes some minutes, and needs Docker's engine."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cost-")))
        folder.chmod(0o755)
        postgres = Postgres(folder / "postgres")
        s3 = S3(folder / "s3")
        docker = DockerEngine(folder / "docker")
        for each in (postgres, s3, docker):
            stack.enter_context(stopping(each))
            each.start()
        images = _images(image, times + 1)
        figures: Figures = {}
        with _functions(folder / "functions", postgres, s3) as functions:
            count = functions.count
            idle = _mean(count, [functions.tick] * times)
            busy = _mean(count, [functions.busy_tick] * times)
            figures["minute"] = {
                name: round(value + (busy[name] - value) / RECURRING, 2)
                for name, value in idle.items()
            }
            at_rest = functions.metrics()
            figures |= _pushed_and_pulled(functions.host, count, images, docker, folder / "pushed")
            figures["metrics"] = {"at_rest": at_rest, "in_use": functions.metrics()}
        if functions_alone:
            return figures
        bucket = {"OPENREGISTRY_STORAGE_URL": s3.new_storage_url(), **s3.environment()}
        for name, storage in (("server", {}), ("container", bucket)):
            place = folder / name
            with _served(place, postgres, storage) as (host, count):
                measured = _pushed_and_pulled(host, count, images, docker, place / "pushed")
                figures |= {f"{name}_{what}": found for what, found in measured.items()}
        return figures


def _images(image: Image, count: int) -> list[list[Content]]:
    """The layers of a row of images, of which each brings new layers to the one before."""
    same = [
        make_layer(image.layer_bytes, f"kept-{n}") for n in range(image.layers - image.new_layers)
    ]
    return [
        same + [make_layer(image.layer_bytes, f"{number}-{n}") for n in range(image.new_layers)]
        for number in range(count)
    ]


@dataclass(frozen=True)
class _Functions:
    """The registry as functions. ``tick`` is a call of the schedule when nothing is due,
    ``busy_tick`` when all is that recurs; ``metrics`` says of how many metrics CloudWatch has been
    told, each with its dimensions."""

    host: str
    count: Count
    tick: Callable[[], object]
    busy_tick: Callable[[], object]
    metrics: Callable[[], int]


@contextmanager
def _functions(folder: Path, postgres: Postgres, s3: S3) -> Iterator[_Functions]:
    with ExitStack() as stack:
        url = migrated(postgres.new_database())
        rows = stack.enter_context(closing(Relay(postgres.port)))
        ours = stack.enter_context(closing(FaultyProxy(s3.endpoint)))
        theirs = stack.enter_context(closing(FaultyProxy(s3.endpoint)))
        queue = stack.enter_context(closing(Queue()))
        settings = {
            "OPENREGISTRY_DATABASE_URL": url.replace(f":{postgres.port}/", f":{rows.port}/"),
            "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(
                endpoint=ours.endpoint, public_endpoint=theirs.endpoint
            ),
            "OPENREGISTRY_QUEUE_URL": queue.url,
            "AWS_REGION": s3.region,
            **s3.environment(),
        }
        registry = stack.enter_context(LambdaRegistry(folder / "api", settings))
        jobs = stack.enter_context(LambdaJobs(folder / "jobs", registry, queue.messages, every=1e6))
        *functions, authorizer = registry.processes

        def count() -> dict[str, float]:
            seen = [each.operation for proxy in (ours, theirs) for each in proxy.seen]
            paid = [each for each in seen if each not in FREE]
            everything = [*registry.processes, *jobs.processes]
            return {
                "requests": registry.function.invocations,
                "authorizer_calls": registry.authorizer.invocations,
                "job_calls": jobs.messages.invocations + jobs.work.invocations,
                "messages": queue.sent,
                "answered_kb": registry.function.answered / 1000,
                "processor_ms": _processor_ms([*functions, *jobs.processes]),
                "authorizer_processor_ms": _processor_ms([authorizer]),
                "round_trips": rows.sent,
                "storage_calls": len(ours.seen),
                "writes": sum(each not in READS for each in paid),
                "reads": sum(each in READS for each in paid),
                "log_kb": sum(each.log.stat().st_size for each in everything) / 1000,
            }

        def tick() -> None:
            jobs.work.invoke(SCHEDULED, TIMEOUT)

        def busy_tick() -> None:
            postgres.query("DELETE FROM schedules", url.rpartition("/")[2])
            tick()

        tick()
        logs = [each.log for each in (*registry.processes, *jobs.processes)]
        yield _Functions(registry.host, count, tick, busy_tick, lambda: len(_metrics(logs)))


def _metrics(logs: Sequence[Path]) -> set[tuple[str, ...]]:
    """Metrics that lines of logs tell of (AWS, "Specification: Embedded metric format")."""
    found = set()
    for line in "".join(log.read_text() for log in logs).splitlines():
        if not line.startswith("{") or "CloudWatchMetrics" not in line:
            continue
        told = json.loads(line)
        for directive in told["_aws"]["CloudWatchMetrics"]:
            for names in directive["Dimensions"]:
                dimensions = [f"{name}={told[name]}" for name in sorted(names)]
                found |= {(metric["Name"], *dimensions) for metric in directive["Metrics"]}
    return found


@contextmanager
def _served(
    folder: Path, postgres: Postgres, settings: dict[str, str]
) -> Iterator[tuple[str, Count]]:
    """The registry as a program: its address, and what counts its time and that of Postgres."""
    url = migrated(postgres.new_database())
    own = {"OPENREGISTRY_ACCESS": "accounts", "OPENREGISTRY_DATABASE_URL": url}
    server = Registry(folder / "registry", own | settings)
    with stopping(server):
        server.start()

        def count() -> dict[str, float]:
            pids = tree(server.pid) | tree(postgres.pid)
            return {"processor_ms": 1000 * cpu_seconds(pids)}

        yield server.host, count


def _processor_ms(functions: Sequence[Function]) -> float:
    return 1000 * cpu_seconds({each.pid for each in functions})


def _pushed_and_pulled(
    host: str, count: Count, images: Sequence[list[Content]], docker: DockerEngine, folder: Path
) -> Figures:
    """Push images, of which the first is not counted; pull them onto machines that have nothing,
    and onto ones that have the image before."""
    config = folder / "client"
    config.mkdir(parents=True)
    credentials = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (config / "config.json").write_text(json.dumps({"auths": {host: {"auth": credentials}}}))
    docker.run("login", "--username", USER, "--password", PASSWORD, host)
    names = [f"{host}/cost/app:{number}" for number in range(len(images))]
    layouts = [
        write_layout(folder / f"{number}", [image_of(image)]) for number, image in enumerate(images)
    ]

    def push(number: int) -> None:
        run(OPENREGISTRY, "push", layouts[number], names[number], DOCKER_CONFIG=str(config))

    def pull(number: int) -> None:
        docker.run("pull", names[number])

    push(0)
    remove_images(docker)
    time.sleep(SETTLED)
    rest = range(1, len(images))
    pushes = _mean(count, [partial(push, number) for number in rest])
    whole = _mean(
        count,
        [partial(pull, number) for number in rest],
        lambda: remove_images(docker),
    )
    pull(0)
    time.sleep(SETTLED)
    update = _mean(count, [partial(pull, number) for number in rest])
    remove_images(docker)
    return {"push": pushes, "pull_whole": whole, "pull_update": update}


def _mean(
    count: Count, what: Sequence[Callable[[], object]], after: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """What each of some doings took on average; what comes after one is counted with it, if it
    comes soon. ``after`` is not."""
    total: dict[str, float] = {}
    for do in what:
        before = count()
        do()
        time.sleep(SETTLED)
        for name, value in count().items():
            total[name] = total.get(name, 0) + value - before[name]
        after()
    return {name: round(value / len(what), 2) for name, value in total.items()}
