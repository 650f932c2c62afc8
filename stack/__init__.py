"""A server for the whole Llama Stack HTTP API on Ray."""

__version__ = "0.1.0"
