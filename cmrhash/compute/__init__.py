"""Compute: device and dtype selection, and processes that share one job. It may import errors."""
