"""An embedding model: texts in, vectors out."""
