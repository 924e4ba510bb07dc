"""The benchmark: this registry beside Debian's docker-registry, on one machine in one run."""
