"""Feature matrices that others computed (.mat, HDF5, .npz, .npy, .safetensors), read as a data set."""

SUFFIXES = (".mat", ".h5", ".hdf5", ".h5py", ".npz", ".npy", ".safetensors")
