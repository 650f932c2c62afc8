"""Sandbox: runs code that nobody vouches for."""
