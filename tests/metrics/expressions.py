"""What infra/ asks Prometheus: the expressions of dashboards and rules."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARDS = sorted((INFRA / "grafana" / "dashboards").glob("*.json"))
RULES = INFRA / "prometheus" / "rules" / "openregistry.yml"
CONFIGURATION = INFRA / "prometheus" / "prometheus.yml"

_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
"""What Grafana replaces."""


@dataclass(frozen=True)
class Asked:
    """One expression, and where it is."""

    place: str
    text: str


@dataclass(frozen=True)
class Selector:
    """A metric that an expression names, with its matchers: (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def of_dashboards() -> list[Asked]:
    """Every panel's."""
    return [
        Asked(f"{path.name}: {panel['title']}", _replaced(target["expr"]))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def rules() -> list[dict[str, Any]]:
    """Every rule, as its file has it."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def of_rules() -> list[Asked]:
    """Every rule's."""
    return [Asked(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]


def selectors(text: str) -> list[Selector]:
    """The metrics that an expression names. Raises ``ValueError`` where it is none."""
    return [
        Selector(
            each.name or "",
            tuple(
                (matcher.name, _OPERATORS[str(matcher.op).rpartition(".")[2]], matcher.value)
                for matcher in each.matchers.matchers
            ),
        )
        for each in _nodes(text)
        if isinstance(each, promql_parser.VectorSelector)
    ]


def groupings(text: str) -> set[str]:
    """The labels that an expression groups by."""
    return {
        label
        for node in _nodes(text)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier
        for label in node.modifier.labels
    }


_OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def _nodes(text: str) -> list[promql_parser.Expr]:
    nodes: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(text), nodes.append)
    return nodes


def _replaced(text: str) -> str:
    for name, value in _VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text, f"a variable that no dashboard has: {text}"
    return text
