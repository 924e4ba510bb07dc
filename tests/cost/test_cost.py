"""The cost model: its arithmetic, its inputs, its page, and what it was measured from."""

import re
import subprocess
import sys
from datetime import date
from urllib.parse import urlsplit

import pytest

from infra.cost.__main__ import SHOWN, told
from infra.cost.model import (
    PARTS,
    Inputs,
    Month,
    Price,
    akash,
    aws,
    once,
    server,
    server_and_r2,
    servers,
)
from tests.hosts.lambda_runtime import ROOT

COUNTED = ("requests", "authorizer_calls", "messages", "writes", "reads")
"""What is the same in each run."""


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.read()


def test_prices_have_tiers_and_what_is_free() -> None:
    price = Price([(10, 2.0), (100, 1.0)], free=5)
    assert [price.of(amount) for amount in (0, 5, 6, 15, 16, 115)] == [0, 0, 2, 20, 21, 120]


def test_each_price_says_where_it_is_from_and_when(inputs: Inputs) -> None:
    found = []
    for provider in ("aws", "r2", "filebase"):
        for each in inputs.given[provider].values():
            found += each if isinstance(each, list) else [each]
    found += [inputs.given["akash"], inputs.given["server"]]
    assert len(found) > 15
    for price in found:
        assert urlsplit(price["source"].split()[0]).scheme == "https", price
        assert isinstance(price["date"], date), price


def test_users_pay_for_what_they_do(inputs: Inputs) -> None:
    """Twice the users, twice the bytes; a bill has all parts, and grows."""
    one, two = Month(inputs, 5000), Month(inputs, 10_000)
    assert two.pulled_gb == pytest.approx(2 * one.pulled_gb)
    for place in (aws, akash, server, server_and_r2, lambda month: aws(month, "r2")):
        assert set(place(one)) == set(PARTS)
        assert sum(place(one).values()) < sum(place(two).values())
    assert servers(one) <= servers(two)


def test_egress_by_hand(inputs: Inputs) -> None:
    """192 TB: 100 GB for nothing, then what AWS lists."""
    month = Month(inputs, 10_000)
    gb = month.pulled_gb + month.sum("answered_kb") / 1e6
    by_hand = 10_140 * 0.09 + 40_960 * 0.085 + 102_400 * 0.07 + (gb - 100 - 153_500) * 0.05
    assert aws(month)["egress"] == pytest.approx(by_hand)
    assert aws(month, "r2")["egress"] < 20


def test_what_a_pull_costs_is_nearly_all_egress(inputs: Inputs) -> None:
    alone = once(inputs, "pull_whole", 0)
    assert once(inputs, "pull_whole", 160) - alone == pytest.approx(0.160 * 0.09)
    assert 0 < alone < 0.0002


def test_the_page_shows_what_the_program_says(inputs: Inputs) -> None:
    page = (ROOT / "docs" / "cost.md").read_text()
    found = re.search(r"<!-- cost: begin -->\n(.*?)\n<!-- cost: end -->", page, re.DOTALL)
    assert found, "docs/cost.md has no table"
    assert found[1] == told(inputs), "put what `make cost` prints into docs/cost.md"


def reckoned(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cost", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_other_numbers_of_users() -> None:
    done = reckoned("--users", "7", "700")
    assert re.findall(r"\*\*([\d,]+) active users", done.stdout) == ["7", "700"], done.stderr


@pytest.mark.parametrize(
    ("users", "told"),
    [("0", "is no number of users"), ("many", "is no number"), ("1000000", "inputs.toml knows")],
)
def test_wrong_numbers_of_users(users: str, told: str) -> None:
    done = reckoned("--users", users)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_persistent_disk_is_of_the_class_that_is_deployed(inputs: Inputs) -> None:
    """What price_script_generic.sh asks for each class, a GB and month."""
    prices = {"beta1": 0.01, "beta2": 0.03, "beta3": 0.04}
    [found] = set(re.findall(r"class: (\w+)", (ROOT / "infra/akash/full.yaml").read_text()))
    assert inputs.given["akash"]["persistent_gb"] == prices[found]


def test_the_figures_are_whole(inputs: Inputs) -> None:
    kinds = ["push", "pull_whole", "pull_update"]
    for kind in (*kinds, "minute"):
        assert inputs.figures[kind].keys() == SHOWN.keys()
        assert min(inputs.figures[kind].values()) >= 0
    assert 0 < inputs.figures["metrics"]["at_rest"] <= inputs.figures["metrics"]["in_use"]
    for where in ("server", "container"):
        for kind in kinds:
            assert inputs.figures[f"{where}_{kind}"]["processor_ms"] > 0


@pytest.mark.long
@pytest.mark.usefixtures("docker")
def test_pushes_and_pulls_take_what_the_figures_say(inputs: Inputs) -> None:
    """Measured anew, on functions. Where this fails `make cost ARGS=--measure` has to be run."""
    from infra.cost.measure import measure

    measured = measure(inputs.image, 1, functions_alone=True)
    for kind in ("push", "pull_whole", "pull_update"):
        known = inputs.figures[kind]
        assert {name: measured[kind][name] for name in COUNTED} == {
            name: known[name] for name in COUNTED
        }
        # How many processes connect anew, and ask for the access epoch, depends on the moment.
        assert measured[kind]["round_trips"] == pytest.approx(known["round_trips"], rel=0.4)
