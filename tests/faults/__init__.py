"""The whole registry under faults, seen from outside: as `openregistry serve` starts it, over real
sockets, on a real Postgres, a real folder and a real S3 server."""
