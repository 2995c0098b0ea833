"""Data sets: items with photos, captions, labels and splits, read from any layout. It may import storage and config."""
