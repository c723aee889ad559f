"""The same ``encode(texts) -> array``, run by different machinery."""
