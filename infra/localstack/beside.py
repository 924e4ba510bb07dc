"""The functions beside an AWS that does not run them, by Lambda's own runtime client. Bucket, queue
and secrets are that AWS's.
"""

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.localstack.clouds import REGION, Cloud
from tests.hosts.lambda_jobs import LambdaJobs
from tests.hosts.lambda_registry import LambdaRegistry


class SqsQueue:
    """A queue of an AWS, as ``LambdaJobs`` takes messages from one. Both methods raise
    ``queue.Empty``."""

    def __init__(self, cloud: Cloud, url: str) -> None:
        self.url = url
        self._client = cloud.client("sqs")

    def get(self, block: bool = True, timeout: float | None = None) -> str:
        """The next message, which is gone then."""
        seconds = round(timeout or 0) if block else 0
        found: Any = self._client.receive_message(
            QueueUrl=self.url, WaitTimeSeconds=seconds, MaxNumberOfMessages=1
        )
        for message in found.get("Messages", []):
            self._client.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            return str(message["Body"])
        raise queue.Empty

    def get_nowait(self) -> str:
        """The next message, if it is there."""
        return self.get(block=False)


@contextmanager
def running(
    cloud: Cloud, directory: Path, port: int, queue_url: str, settings: Mapping[str, str]
) -> Iterator[None]:
    """Serve at a port of 127.0.0.1 and do jobs, until the block ends."""
    environment = {
        **settings,
        "OPENREGISTRY_DATABASE_URL": "aws-ssm:/openregistry/database-url",
        "OPENREGISTRY_SECRET_KEY": "aws-ssm:/openregistry/secret-key",
        "OPENREGISTRY_QUEUE_URL": queue_url,
        "AWS_ENDPOINT_URL": cloud.endpoint,
        "AWS_REGION": REGION,
    }
    with (
        LambdaRegistry(directory / "api", environment, port=port) as registry,
        LambdaJobs(directory / "jobs", registry, SqsQueue(cloud, queue_url)),
    ):
        yield
