"""How models are told of tools, and how their calls are written, constrained and parsed."""
