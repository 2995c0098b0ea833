"""Features: the HDF5 cache of encoded photos and captions. It may import data, encoders, retrieval and above."""
