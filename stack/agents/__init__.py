"""Agents: their sessions, and turns that survive whatever happens to the process."""
