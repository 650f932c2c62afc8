"""Vector databases: chunks of documents, found again by meaning and by words. On LanceDB."""
