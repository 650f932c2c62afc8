"""Durable work outside HTTP requests: what runs a job, and what keeps jobs running."""
