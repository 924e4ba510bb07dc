"""A client of registries elsewhere: what `openregistry pull`, `push` and `proxy` do there.

It needs no database and none of the registry's own functions: a registry is an address here.
"""
