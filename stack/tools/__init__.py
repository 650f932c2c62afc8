"""Tools: groups of functions that models may call, here or on MCP servers."""
