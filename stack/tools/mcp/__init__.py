"""MCP: tools of other servers. Only `provider` is light; the others import the package mcp."""
