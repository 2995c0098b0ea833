"""Data sets: one reader a file, all of them giving an ``ImageTextDataset``; ``readers.py`` knows them by name."""
