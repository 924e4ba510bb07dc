"""The fixtures of the contract suite."""

from tests.contract.resolvers import network, network_ipfs, network_memory
from tests.contract.stores import kept, kept_in_filesystem, kept_in_s3, s3, s3_stores, store

__all__ = [
    "kept",
    "kept_in_filesystem",
    "kept_in_s3",
    "network",
    "network_ipfs",
    "network_memory",
    "s3",
    "s3_stores",
    "store",
]
