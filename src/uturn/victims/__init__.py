"""Victims: pixels in, embeddings and logits out."""
