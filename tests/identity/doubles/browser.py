"""The browser of somebody who signs in: goes where it is sent, once."""

import http.client
from urllib.parse import parse_qsl, urlsplit


def redirected(url: str) -> str:
    """Where a page redirects to."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 302, (answer.status, body)
        return answer.headers["Location"]
    finally:
        connection.close()


def query(url: str) -> dict[str, str]:
    """The parameters of a URL's query."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
