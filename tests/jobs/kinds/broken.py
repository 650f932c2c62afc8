"""An entry point that cannot even be imported."""

raise ImportError("no such library")
