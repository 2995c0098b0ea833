"""Cross-modal hashing: find images by text and texts by image through compact binary codes.

Importing this package imports nothing heavy; each stage is a module of its own.
"""

__version__ = "0.1.0"
