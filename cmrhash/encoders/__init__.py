"""Encoders: pixels and captions to feature vectors, each with a recipe. It may import compute, storage and config."""
