"""Web search: one tool, several vendors."""
