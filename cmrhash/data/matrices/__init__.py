"""Feature matrices that others computed (.mat, .npz, .npy, HDF5), read as a data set."""
