"""What the stack is deployed into: ministack, which is started, or a LocalStack that runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from tests.servers import BIN, Server, answers, free_port

REGION = "us-east-1"


class Cloud:
    """An AWS at one address. Its credentials are no secret: any will do there."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint.rstrip("/")

    def client(self, service: Any) -> Any:
        """A boto3 client of one of its services."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106
        )


class LocalStack(Cloud):
    """A LocalStack that somebody else has started. It runs functions in containers of AWS's
    images, which reach no server at 127.0.0.1; so they run beside it."""


class Ministack(Server, Cloud):
    """ministack (https://github.com/ministackorg/ministack): CloudFormation, Lambda, API Gateway,
    S3, SQS, EventBridge and more, on one port. It runs functions without Docker."""

    name = "ministack"

    def __init__(self, directory: Path) -> None:
        Server.__init__(self, directory)
        self.port = free_port()
        Cloud.__init__(self, f"http://127.0.0.1:{self.port}")
        self._code = directory / "code"  # of functions, which it leaves behind
        self._code.mkdir()

    def command(self) -> list[str]:
        return [str(BIN / "ministack")]

    def environment(self) -> Mapping[str, str]:
        return {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "LAMBDA_EXECUTOR": "local",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.directory / "s3"),
            "TMPDIR": str(self._code),
        }

    def ready(self) -> bool:
        return answers(f"{self.endpoint}/_ministack/health")

    def stop(self, within: float = 5) -> None:
        """It waits for functions that nobody waits for any more."""
        super().stop(within)
