"""The gauges of what all hosts share, by asking Postgres."""

from chalicelib.metadata import jobs, sizes, status
from chalicelib.metadata.database import Runner
from chalicelib.metrics import catalogue

_PROBE_STATES = {"works": 1, "fails": 0, "unknown": -1}


def survey_jobs(runner: Runner) -> None:
    """How many jobs there are. Raises ``Unavailable``."""
    depths = jobs.depths(runner)
    for metric in (catalogue.JOBS, catalogue.JOBS_AGE):
        metric.clear()
    for each in depths:
        for state in ("waiting", "running", "failing", "dead"):
            catalogue.JOBS.set(getattr(each, state), each.kind, state)
        catalogue.JOBS_AGE.set(each.age, each.kind)
        catalogue.JOBS_DONE.set(each.done, each.kind)
        catalogue.JOBS_FAILED.set(each.failed, each.kind)
        catalogue.JOBS_GIVEN_UP.set(each.given_up, each.kind)


def survey(runner: Runner) -> None:
    """All of them. Raises ``Unavailable``."""
    survey_jobs(runner)
    catalogue.PROBE_STATE.set(_PROBE_STATES[status.state(runner)])
    catalogue.DATABASE_SIZE.set(sizes.database_size(runner))
    for table, rows in sizes.estimated_rows(runner):
        catalogue.DATABASE_ROWS.set(rows, table)
