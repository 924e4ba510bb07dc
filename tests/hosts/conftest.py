from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.metadata.migrate import migrate
from tests.hosts.lambda_registry import LambdaRegistry
from tests.servers import S3, Postgres


@pytest.fixture(scope="session")
def lambda_registry(directory: Path, postgres: Postgres, s3_server: S3) -> Iterator[LambdaRegistry]:
    """The registry on Lambda behind API Gateway, both as the tests imitate them; ``.host`` and
    ``.url`` are for clients, who log in as ``USER`` with ``PASSWORD``."""
    settings = {
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        **s3_server.environment(),
    }
    migrate(settings["OPENREGISTRY_DATABASE_URL"])
    with LambdaRegistry(directory / "lambda", settings) as registry:
        yield registry
