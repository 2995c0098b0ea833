"""Features: HDF5 files of photo and caption features. It may import data, encoders, retrieval and above."""
