"""From what users do, through what that takes, to what it costs a month."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE / "figures.toml"
MONTH = 730 * 3600
"""Seconds."""

Figures = dict[str, dict[str, float]]
"""What was measured: for each of ``push``, ``pull_whole``, ``pull_update`` and ``minute``, how much
of what; ``metrics`` that CloudWatch is told of; and processor time alone for a server and a
container."""


@dataclass(frozen=True)
class Image:
    """The image that was measured. Bytes are those of a layer as it is stored."""

    layers: int
    layer_bytes: int
    new_layers: int

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return self.layers * self.layer_bytes

    @property
    def new(self) -> int:
        """Bytes of the layers that a push brings."""
        return self.new_layers * self.layer_bytes


@dataclass(frozen=True)
class Price:
    """What so much of something costs: nothing as far as it is free, then by tiers, each the amount
    it holds for and the price of one."""

    tiers: Sequence[tuple[float, float]]
    free: float = 0

    def of(self, amount: float) -> float:
        """USD."""
        rest, total = max(0.0, amount - self.free), 0.0
        for width, price in self.tiers:
            total += min(rest, width) * price
            rest -= min(rest, width)
        return total


@dataclass(frozen=True)
class Inputs:
    """All that the model is given."""

    given: Mapping[str, Any]
    figures: Figures

    @classmethod
    def read(cls) -> "Inputs":
        """Those in this folder."""
        with (HERE / "inputs.toml").open("rb") as file:
            given = tomllib.load(file)
        with FIGURES.open("rb") as file:
            return cls(given, tomllib.load(file))

    @cached_property
    def image(self) -> Image:
        """The image that is pushed and pulled."""
        return Image(**self.given["image"])

    def price(self, provider: str, name: str) -> Price:
        """A price."""
        found = self.given[provider][name]
        return Price([(width, price) for width, price in found["tiers"]], found.get("free", 0))


@dataclass(frozen=True)
class Month:
    """What a number of active users do in a month."""

    inputs: Inputs
    users: int

    @property
    def pushes(self) -> float:
        """How many."""
        return float(self.users * self.inputs.given["usage"]["pushes"])

    @property
    def pulls(self) -> float:
        """How many."""
        return float(self.users * self.inputs.given["usage"]["pulls"])

    @property
    def stored_gb(self) -> float:
        """What is kept, on average."""
        kept: float = self.inputs.given["usage"]["kept_months"]
        return self.pushed_gb * kept

    @property
    def pushed_gb(self) -> float:
        """What comes in."""
        return self.pushes * self.inputs.image.new / 1e9

    @property
    def pulled_gb(self) -> float:
        """What goes out."""
        image = self.inputs.image
        whole: float = self.inputs.given["usage"]["whole"]
        return self.pulls * (whole * image.size + (1 - whole) * image.new) / 1e9

    def sum(self, what: str, kind: str = "") -> float:
        """How much of what was measured all pushes and pulls take."""
        figures = self.inputs.figures
        whole: float = self.inputs.given["usage"]["whole"]
        return (
            self.pushes * figures[f"{kind}push"][what]
            + self.pulls * whole * figures[f"{kind}pull_whole"][what]
            + self.pulls * (1 - whole) * figures[f"{kind}pull_update"][what]
        )

    def peak(self, amount: float) -> float:
        """So much in a month is at the busiest hour so much a second."""
        return float(amount * self.inputs.given["usage"]["peak"] / MONTH)


Bill = dict[str, float]
"""USD a month, by what they are for."""

REQUESTS, COMPUTE, STORAGE, EGRESS, DATABASE, REST = PARTS = (
    "requests",
    "computing",
    "storage",
    "egress",
    "Postgres",
    "logs, alarms, addresses",
)


Total = Callable[[str], float]
"""How much there is of something that was measured."""


def calls(total: Total) -> float:
    """Calls of functions."""
    return total("requests") + total("authorizer_calls") + total("job_calls")


def gb_seconds(inputs: Inputs, total: Total) -> float:
    """What they take on Lambda: memory by time."""
    setting = inputs.given["lambda"]
    # The less memory a function has the longer it takes, for the same GB-seconds. While it waits it
    # pays for its memory.
    processor_ms: float = (
        total("processor_ms")
        + total("authorizer_processor_ms")
        + calls(total) * setting["cold"] * setting["cold_processor_ms"]
    )
    waited_ms: float = (
        total("round_trips") * setting["round_trip_ms"]
        + total("storage_calls") * setting["storage_ms"]
    )
    worked: float = processor_ms * setting["processor_mb"] / 1024
    waited: float = waited_ms * setting["memory_mb"] / 1024
    return (worked + waited) / 1000


def once(inputs: Inputs, kind: str, pulled_mb: float) -> float:
    """USD that one push or pull costs on AWS, when nothing is free any more. What a push leaves in
    the bucket is not in it."""
    figures = inputs.figures[kind]

    def price(name: str) -> float:
        return inputs.price("aws", name).tiers[0][1]

    total = figures.__getitem__
    return (
        figures["requests"] / 1e6 * price("gateway")
        + calls(total) / 1e6 * price("invocations")
        + gb_seconds(inputs, total) * price("gb_seconds")
        + 3 * figures["messages"] / 1e6 * price("queue")
        + figures["writes"] / 1000 * price("writes")
        + figures["reads"] / 1000 * price("reads")
        + figures["log_kb"] / 1e6 * price("logs")
        + (figures["answered_kb"] / 1e6 + pulled_mb / 1000) * price("egress")
    )


def aws(month: Month, storage: str = "aws") -> Bill:
    """Functions on AWS, and blobs in S3 or with another provider."""
    inputs, minutes = month.inputs, MONTH / 60
    idle = inputs.figures["minute"]
    setting = inputs.given["lambda"]

    def price(name: str, amount: float) -> float:
        return inputs.price("aws", name).of(amount)

    def total(what: str) -> float:
        return month.sum(what) + minutes * idle[what]

    # A message is sent, received and deleted; a queue that has none is asked all the time.
    asked = 3 * total("messages") + setting["pollers"] * MONTH / 20
    answered_gb = month.sum("answered_kb") / 1e6
    database = next(
        each for each in inputs.given["aws"]["database"] if month.users <= each["users"]
    )
    stored = month.stored_gb if storage == "aws" else 0
    out_gb = answered_gb + (month.pulled_gb if storage == "aws" else 0)
    return {
        REQUESTS: price("gateway", total("requests") / 1e6)
        + price("queue", asked / 1e6)
        + inputs.price(storage, "writes").of(total("writes") / 1000)
        + inputs.price(storage, "reads").of(total("reads") / 1000),
        COMPUTE: price("invocations", calls(total) / 1e6)
        + price("gb_seconds", gb_seconds(inputs, total)),
        STORAGE: inputs.price(storage, "storage").of(stored or month.stored_gb),
        EGRESS: price("egress", out_gb),
        DATABASE: database["month"] + price("database_storage", database["storage_gb"]),
        REST: price("logs", total("log_kb") / 1e6)
        + price("alarms", setting["alarms"])
        + price("metrics", inputs.figures["metrics"]["in_use" if month.users else "at_rest"])
        + price("domain", 1),
    }


def akash(month: Month) -> Bill:
    """Containers on Akash, with Postgres beside them, and blobs in a bucket of Filebase."""
    given = month.inputs.given["akash"]
    replica, database = given["replica"], given["database"]
    replicas = max(
        given["replicas"],
        _machines(month, "container_", replica["processors"], given["filled"]),
        # What is pushed goes through them; what is pulled comes from the bucket.
        ceil(month.peak(month.pushed_gb * 8000) / given["mbit"]),
    )

    def resources(one: Mapping[str, float]) -> float:
        return float(
            one["processors"] * given["processor"]
            + one["memory_gb"] * given["memory_gb"]
            + one["disk_gb"] * given["disk_gb"]
            + one.get("persistent_gb", 0) * given["persistent_gb"]
        )

    return {
        REQUESTS: 0.0,
        COMPUTE: replicas * resources(replica),
        STORAGE: month.inputs.price("filebase", "plan").of(1)
        + month.inputs.price("filebase", "storage").of(month.stored_gb),
        EGRESS: month.inputs.price("filebase", "egress").of(month.pulled_gb),
        DATABASE: resources(database),
        REST: given["address"],
    }


def server(month: Month) -> Bill:
    """Servers with Postgres beside, and blobs on volumes: one, or as many as it takes."""
    return _servers(month, servers(month), month.pulled_gb) | {
        STORAGE: month.stored_gb * month.inputs.given["server"]["volume_gb"]
    }


def server_and_r2(month: Month) -> Bill:
    """Servers with Postgres beside, and blobs in R2, to which clients are sent."""
    inputs = month.inputs
    return _servers(month, servers(month, bucket=True), month.pushed_gb) | {
        REQUESTS: inputs.price("r2", "writes").of(month.sum("writes") / 1000)
        + inputs.price("r2", "reads").of(month.sum("reads") / 1000),
        STORAGE: inputs.price("r2", "storage").of(month.stored_gb),
    }


def _servers(month: Month, count: int, sent_gb: float) -> Bill:
    given = month.inputs.given["server"]
    beyond_tb = max(0.0, sent_gb / 1000 - count * given["traffic_included_tb"])
    bill = dict.fromkeys(PARTS, 0.0)
    return bill | {COMPUTE: count * given["month"], EGRESS: beyond_tb * given["traffic_tb"]}


def servers(month: Month, *, bucket: bool = False) -> int:
    """How many servers it takes at the busiest hour: to send what is pulled, or to send what is
    pushed on to a bucket."""
    given = month.inputs.given["server"]
    mbit = month.peak((month.pushed_gb if bucket else month.pulled_gb) * 8000)
    kind = "container_" if bucket else "server_"
    busy = _machines(month, kind, given["processors"], given["filled"])
    sending: int = ceil(mbit / given["mbit"])
    return max(1, sending, busy)


def _machines(month: Month, kind: str, processors: float, filled: float) -> int:
    """How many it takes at the busiest hour, each using so much of its processors."""
    busy = month.peak(month.sum("processor_ms", kind) / 1000)
    return ceil(float(busy) / processors / filled)
