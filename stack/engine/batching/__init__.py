"""The continuous batcher: many requests over one runner."""
