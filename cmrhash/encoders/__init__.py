"""Encoders: pixels and captions -> feature vectors, each with a recipe of all that changes the numbers."""
