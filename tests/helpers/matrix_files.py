"""Feature files of others: how to write small ones."""

from __future__ import annotations

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from cmrhash.data.items import ImageTextDataset, Item, check, with_roles
from cmrhash.data.matrices import dataset as matrices

N, TR, CLASSES = 30, 20, 3  # items, of which train, classes


def parts_of(data, **rows):
    """{"I_tr": ...} for tr=slice, ..."""
    return {f"{key}_{part}": x[where] for part, where in rows.items() for key, x in data.items()}


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


def matlab5(path, arrays):
    scipy.io.savemat(path, arrays, do_compression=True)
    return path


def matlab73(path, arrays, **options):
    """As MATLAB does it: axes in reverse, a class an array, a header before the HDF5 signature, sparse as groups."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, x in arrays.items():
            if scipy.sparse.issparse(x):
                node = file.create_group(name)
                node.attrs["MATLAB_sparse"] = np.uint64(x.shape[0])
                node["data"], node["ir"], node["jc"] = x.data, x.indices.astype("u8"), x.indptr.astype("u8")
            else:
                node = file.create_dataset(name, data=np.atleast_2d(x).T, **options)
            node.attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("#refs#")["a"] = [1.0]
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def read(*files, maps=(), seed=0):
    return check(with_roles(matrices.read(files, maps), seed))


def spread(folder, arrays):
    files = [folder / f"{name}.npy" for name in arrays]
    for file, x in zip(files, arrays.values(), strict=True):
        np.save(file, x)
    return files


def other(roles_of, languages=("en",)):
    items = tuple(
        Item(f"i{n}", None, dict.fromkeys(languages, (f"text {n}",)), (0,), frozenset(own))
        for n, own in enumerate(roles_of)
    )
    return ImageTextDataset("mine", None, items, ("a",))
