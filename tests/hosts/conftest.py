"""Fixtures for the tests of hosts."""

import uuid

import pytest


@pytest.fixture
def name() -> str:
    """What a test calls its requests to a program that others use too (`/stream?name=…`), so that
    it sees their events alone."""
    return uuid.uuid4().hex
