"""The fixtures of the contract suite."""

from tests.contract.resolvers import (
    filebase_double,
    network,
    network_bucket,
    network_filebase,
    network_ipfs,
    network_memory,
)
from tests.contract.stores import kept, kept_in_filesystem, kept_in_s3, s3, s3_stores, store

__all__ = [
    "filebase_double",
    "kept",
    "kept_in_filesystem",
    "kept_in_s3",
    "network",
    "network_bucket",
    "network_filebase",
    "network_ipfs",
    "network_memory",
    "s3",
    "s3_stores",
    "store",
]
