"""The JSON API, /api/v1: what people and programs do besides pushing and pulling.

A module a noun, each with a table ``OPERATIONS``. ``operations`` dispatches by these tables and
decides who may do what before a function is called; ``openapi`` describes them.
"""
