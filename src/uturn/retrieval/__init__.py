"""Retrieval: from features to rankings, metrics and intervals."""
