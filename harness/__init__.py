"""Distil a large embedding model into a small query encoder that searches the large model's own, unchanged index."""

__version__ = "0.1.0"
