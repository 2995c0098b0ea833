"""Cross-modal hashing: find images by text and texts by image through compact binary codes.

Importing this package imports nothing heavy; each stage is a module of its own.
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until the program that imports it says else
