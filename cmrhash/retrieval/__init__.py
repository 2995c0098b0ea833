"""Retrieval: packed codes, Faiss indexes, relevance and metrics in NumPy. It may import errors and storage."""
