"""Files of every foreign format with bytes that were changed, and what their readers make of them.

Readers may crash the interpreter: a child process reads, ``python mutated_files.py FORMAT FIRST COUNT``, and prints a
word per file: "read", "refused", or the name of an error that is none of ours.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matrix_files
import numpy as np

SECONDS, MEMORY = 120, 3 << 30  # of a file, more than apart.CPU_SECONDS; bytes beyond those of the start
PHOTOS = {"JPEG": [{}, {"progressive": True}], "PNG": [{}], "GIF": [{}], "WEBP": [{}, {"lossless": True}], "BMP": [{}]}
PHOTOS |= {"TIFF": [{"compression": name} for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "group4")]}
FORMATS = ("mat", "h5", "npz", "npy", "safetensors", "parquet", "pth", "tar", "vec", "sealed", *PHOTOS)
X = np.random.default_rng(0).random((6, 4))


def outcomes(kind, count):
    """The word for each file; "crashed" or "hung" for those whose reading ended the child."""
    words = []
    while len(words) < count:
        command = [sys.executable, __file__, kind, str(len(words)), str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        words += done.stdout.split()
        if len(words) < count:
            assert done.returncode < 0, f"{kind}: the child ended by itself with {done.returncode}"
            words.append("hung" if -done.returncode == signal.SIGALRM else "crashed")
    return words


def mutated(whole, number):
    """One of the files with one to eight changes, the same for the same number."""
    chance = random.Random(number)
    content = bytearray(chance.choice(whole))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = chance.randrange(len(content) if chance.random() < 0.6 else min(len(content), 512))
        how = chance.random()
        if how < 0.5:
            content[at] = chance.randrange(256)
        elif how < 0.7:
            content[at] ^= 1 << chance.randrange(8)
        elif how < 0.8:
            content[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        elif how < 0.9:
            del content[at : at + chance.randrange(1, 16)]
        else:
            content[at:at] = chance.randbytes(chance.randrange(1, 8))
        content = content or bytearray(b"\0")
    return bytes(content)


# ---------------------------------------------------------------------------------------------- whole files


def written(write):
    """Bytes of the file that ``write`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def matlab():
    import scipy.io
    import scipy.sparse

    numbers = {"image": X, "text": X.astype("f4"), "labels": np.eye(6, 3), "sparse": scipy.sparse.csc_matrix(X)}
    more = {"captions": np.array(["a b", "c d"] * 3, object), "names": np.array(["abc", "def"])}
    more |= {"param": {"indexTrain": np.arange(3), "name": "a"}}
    for held, options in ((numbers | more, {}), (numbers | more, {"do_compression": True}), (numbers, {"format": "4"})):
        yield written(lambda path, h=held, o=options: scipy.io.savemat(path, h, **o))


def hdf5():
    import h5py

    def write(path, version):
        with h5py.File(path, "w", libver=version) as file:
            file["image"] = X
            file.create_dataset("text", data=X, compression="gzip", chunks=(2, 4), shuffle=True, fletcher32=True)
            file.create_dataset("captions", data=["a", "bb"] * 3, dtype=h5py.string_dtype())
            file.create_dataset("group/lzf", data=np.arange(60).reshape(6, 10), compression="lzf")
            cells = file.create_dataset("cells", (2,), h5py.ref_dtype)
            cells[0], cells[1] = file["image"].ref, file["group/lzf"].ref
            cells.attrs["MATLAB_class"] = np.bytes_("cell")

    for version in ("earliest", "latest"):
        yield written(lambda path, v=version: write(path, v))


def parquet():
    import pyarrow
    import pyarrow.parquet

    photos = pyarrow.array([{"bytes": b"\xff\xd8\xff" + bytes(20), "path": "a.jpg"}] * 12)
    columns = {"id": ["a", "b", "c"] * 4, "labels": [["a"], ["b", "c"], []] * 4, "image": photos, "n": list(range(12))}
    table = pyarrow.table(columns)
    for how in ("snappy", "gzip", "zstd", "none"):
        yield written(lambda path, h=how: pyarrow.parquet.write_table(table, path, compression=h, row_group_size=5))


def archives():
    import tarfile

    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, content in (("a.jpg", b"\xff\xd8\xff"), ("a.txt", b"a dog"), ("a.json", b'{"label": 1}')):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        yield file.getvalue()


def photos(kind):
    from PIL import Image

    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 31, 3), dtype=np.uint8))
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1"):
        for options in PHOTOS[kind]:
            with io.BytesIO() as file:
                try:
                    colours.convert(mode).save(file, kind, **options)
                except Exception:  # the format has no such colours
                    continue
                yield file.getvalue()


def tensors():
    import torch

    yield written(lambda path: torch.save({"weight": torch.zeros(3, 2), "bias": torch.ones(3)}, path))


def safetensors():
    yield written(lambda path: matrix_files.safetensors(path, {"image": X, "text": X.astype("f4")}))


def numpys(kind):
    if kind == "npy":
        return [written(lambda path, x=x: np.save(path.open("wb"), x)) for x in (X, np.array(["a", "b"]))]
    arrays = {"image": X, "text": X, "ids": np.array(list("abcdef"))}
    return [written(lambda path, s=save: s(path.open("wb"), **arrays)) for save in (np.savez, np.savez_compressed)]


def words():
    rows = [" ".join([f"w{n}", *map(str, X[n])]) for n in range(3)]
    yield ("3 4\n" + "\n".join(rows) + "\n").encode()


def sealed():
    """Payloads of our own sealed files; ``read_sealed`` puts the right digest over them."""
    from cmrhash.storage.hdf5 import write_sealed
    from cmrhash.storage.sealed import USER_BLOCK

    for arrays in ({"x": X.astype("f4"), "ids": np.arange(6)}, {"codes": np.ones((6, 4), "u1"), "empty": X[:0]}):
        yield written(lambda path, a=arrays: write_sealed(path, a, {}))[USER_BLOCK:]


def whole(kind):
    """A few files of the format."""
    makers = {"mat": matlab, "h5": hdf5, "parquet": parquet, "tar": archives, "vec": words, "sealed": sealed}
    makers |= {name: lambda: photos(kind) for name in PHOTOS}
    makers |= {"pth": tensors, "safetensors": safetensors}
    makers |= {"npy": lambda: numpys(kind), "npz": lambda: numpys(kind)}
    return list(makers[kind]())


# ---------------------------------------------------------------------------------------------- readers


def read_arrays(path):
    from cmrhash.data.matrices.arrays import list_arrays
    from cmrhash.errors import CmrhashError

    for array in list_arrays(path):
        with contextlib.suppress(CmrhashError):
            array.read_texts() if array.is_text else array.read()


def read_parquet(path):
    from cmrhash.data import parquet

    names, photos = parquet.columns(path)
    for _ in parquet.rows(path, names, photos):
        pass
    for column in photos:
        parquet.photo(path, column, 3)


def read_photo(path):
    from cmrhash.encoders.pixels import decode

    decode(path.read_bytes())


def read_tensors(path):
    from cmrhash.encoders.weights import read_state

    read_state(path)


def read_tar(path):
    from cmrhash.data.readers import webdataset

    webdataset.read(path.parent)


def read_words(path):
    from cmrhash.encoders import word_vectors

    word_vectors.read_vectors(path, {"w0", "w2"})


def read_sealed(path):
    from cmrhash.storage import hdf5, sealed

    content = bytes(sealed.USER_BLOCK) + path.read_bytes()
    with path.open("w+b") as file:
        file.write(content)
        digest, size = sealed.payload(file)
        about = {"version": sealed.VERSION, "payload_sha256": digest, "payload_bytes": size}
        sealed.write_block(file, sealed.MAGIC, about)
    hdf5.read_sealed(path)


def reader(kind):
    """The function that reads such a file."""
    if kind in PHOTOS:
        return read_photo
    return {
        "parquet": read_parquet,
        "pth": read_tensors,
        "tar": read_tar,
        "vec": read_words,
        "sealed": read_sealed,
    }.get(kind, read_arrays)


def main(kind, first, count):
    from cmrhash.encoders.pixels import BadImage
    from cmrhash.errors import CmrhashError

    warnings.simplefilter("ignore")
    read, files = reader(kind), whole(kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file.{kind}"
        path.write_bytes(files[0])
        read(path)  # imports the packages
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(first, count):
            path.write_bytes(mutated(files, number))
            signal.alarm(SECONDS)
            try:
                read(path)
                word = "read"
            except (CmrhashError, BadImage):
                word = "refused"
            except Exception as error:
                word = f"{type(error).__name__}@{number}"
            print(word, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
