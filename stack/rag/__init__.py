"""Retrieval for a context: documents -> text -> chunks -> a vector store, and back as what a model reads."""
