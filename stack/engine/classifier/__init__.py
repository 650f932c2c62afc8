"""A sequence-classification model: how likely each of a few labels is for a text."""
