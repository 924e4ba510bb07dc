"""Fixtures for the tests of single stores: those of the contract suite."""

from tests.contract.stores import kept_in_filesystem, kept_in_s3, s3, s3_stores

__all__ = ["kept_in_filesystem", "kept_in_s3", "s3", "s3_stores"]
