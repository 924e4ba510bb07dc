"""What a person does about jobs: noted in the audit log."""

from collections.abc import Callable

from chalicelib.metadata import audit, jobs
from chalicelib.metadata.database import Database, Runner, Transaction


def retry(database: Database, job_id: int, *, by: str) -> bool:
    """Have a job begin now that was given up or waits; False where there is none, or it runs."""
    return _noted(database, "job.retry", jobs.retry, job_id, by)


def drop(database: Database, job_id: int, *, by: str) -> bool:
    """Forget a job; False where there is none, or it runs."""
    return _noted(database, "job.drop", jobs.drop, job_id, by)


def _noted(
    database: Database, event: str, change: Callable[[Runner, int], bool], job_id: int, by: str
) -> bool:
    def work(transaction: Transaction) -> bool:
        found = jobs.find(transaction, job_id)
        if found is None or not change(transaction, job_id):
            return False
        audit.add(transaction, event, by, job=job_id, kind=found.kind)
        return True

    return database.transaction(work)
