"""The open registry: everyone on this machine may do everything, and no web site through them."""

import pytest

from chalicelib.context import Context
from tests.client import CoreClient


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:5000"}, 200),
        ({"Host": "127.0.0.1:5000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:5000"}, 200),
        ({"Host": "[::1]", "Sec-Fetch-Site": "none"}, 200),
        ({"Host": "192.0.2.7:5000"}, 200),  # an address cannot be rebound
        ({"Host": "host.docker.internal:5000"}, 200),  # nor a name that no site has
        ({"Host": "registry.test"}, 200),
        ({"Host": "localhost:5000", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost:5000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "rebound.example"}, 403),  # browsers tell nothing more of a rebound name
        ({"Host": "rebound.example:5000", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "127.0.0.1.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_web_sites(
    file_context: Context, repository: str, headers: dict[str, str], status: int, method: str
) -> None:
    target = f"/v2/{repository}/blobs/uploads/" if method == "POST" else "/v2/"
    answer = CoreClient(file_context).request(method, target, headers=headers)
    assert answer.status == (202 if method == "POST" and status == 200 else status)
