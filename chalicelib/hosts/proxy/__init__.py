"""`openregistry proxy`: the harness again, with functions that pass a registry's API on.

A client that knows nothing of direct uploads pushes here as to any registry; the bytes of its
layers go on to storage in parts while they still come in. It keeps nothing but what is on its way.
"""
