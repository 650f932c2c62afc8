"""Safety: shields, which check what goes into and comes out of models."""
