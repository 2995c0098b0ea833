"""Maintenance: what the cache and the runs hold, checked and pruned. It may import every room; no room imports it."""
