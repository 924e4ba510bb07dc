"""What a registry tells Prometheus, for tests to look at."""

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """One answer of /metrics."""

    def __init__(self, host: str) -> None:
        with urllib.request.urlopen(f"http://{host}/metrics", timeout=10) as response:
            self.text = response.read().decode()
        self.families = {each.name: each for each in text_string_to_metric_families(self.text)}
        self.samples: dict[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def sum(self, name: str, **labels: str) -> float:
        """The sum of all series of a name that have these labels."""
        wanted = labels.items()
        return sum(
            value
            for (each, found), value in self.samples.items()
            if each == name and wanted <= set(found)
        )

    def values(self, name: str, label: str) -> set[str]:
        """The values of a label among the series of a name."""
        found = [dict(labels) for each, labels in self.samples if each == name]
        return {labels[label] for labels in found}


def labels_of(labels: Mapping[str, str]) -> set[str]:
    """Names of labels, without those that a histogram's buckets add."""
    return set(labels) - {"le"}
