"""The OCI Distribution Specification, one module a noun."""
