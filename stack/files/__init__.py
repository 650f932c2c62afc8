"""Files that callers upload in sessions, and the URIs from which bytes come."""
