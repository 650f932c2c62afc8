"""JSON schemas and grammars as constraints on decoding."""
