"""OpenRegistry: a container registry made of stateless functions."""

__version__ = "0.1.0"
