"""Feature files of others: how to write small ones."""

from __future__ import annotations

import json

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


def safetensors(path, arrays):
    """As the package of that name writes them; a uint16 array stands for the upper halves of float32."""
    names = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "uint16": "BF16"}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, x in arrays.items():
        begin, content = len(content), content + np.ascontiguousarray(x).tobytes()
        header[name] = {
            "dtype": names[str(x.dtype)],
            "shape": list(x.shape),
            "data_offsets": [begin, len(content)],
        }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def cells(rows):
    """MATLAB's cells: a string, or an array of strings, in each row."""
    out = np.empty((len(rows), 1), object)
    for at, own in enumerate(rows):
        out[at, 0] = own if isinstance(own, str) else np.array(own)
    return out


def matlab73_strings(path, arrays, numbers):
    """As MATLAB 7.3 stores strings: lists of str as characters, lists of lists as cells of cells in "#refs#"."""

    def characters(file, name, rows):
        width = max(map(len, rows))
        units = np.array([[ord(letter) for letter in row.ljust(width)] for row in rows], np.uint16)
        node = file.create_dataset(name, data=units.T)
        node.attrs["MATLAB_class"] = np.bytes_("char")
        return node.ref

    def references(file, name, refs):
        node = file.create_dataset(name, data=np.array(refs, object)[None], dtype=h5py.ref_dtype)
        node.attrs["MATLAB_class"] = np.bytes_("cell")
        return node.ref

    matlab73(path, numbers)
    with h5py.File(path, "r+") as file:
        for name, rows in arrays.items():
            if isinstance(rows[0], str):
                characters(file, name, rows)
                continue
            refs = []
            for at, own in enumerate(rows):
                inner = [characters(file, f"#refs#/{name}{at}_{n}", [text]) for n, text in enumerate(own)]
                refs.append(inner[0] if len(inner) == 1 else references(file, f"#refs#/{name}{at}", inner))
            references(file, name, refs)
    return path


def read(*files, maps=(), seed=0, **more):
    return check(with_roles(matrices.read(files, maps, **more), seed))


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
