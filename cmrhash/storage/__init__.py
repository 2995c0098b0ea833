"""Storage: files written atomically, digests, locks, recipes and sealed HDF5. It may import errors."""
