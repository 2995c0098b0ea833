"""Hostile HDF5, NumPy and MATLAB files: no reference out of the file, no object, no more memory than bytes.

They are refused in one line, also with the right digests. Beside it the plain way to read them.
"""

from __future__ import annotations

import io
import zipfile
import zlib

import h5py
import naive
import numpy as np
import pytest
import scipy.io
import torch
from hostile_files import EVIDENCE, Canary, Evil

from cmrhash.data.matrices import dataset as matrices
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.errors import DamagedError, DataError, UsageError
from cmrhash.features import file as feature_file
from cmrhash.storage import hdf5, sealed

# ---------------------------------------------------------------------------------------------- HDF5


def virtual(file, secret):
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 2))
    file.create_virtual_dataset("image", layout)


def huge(file, _):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((1 << 40, 2)), plan)


def huge_chunk(file, _):
    data = file.create_dataset("image", (4, 2), "f4", chunks=(1 << 24, 2), maxshape=(None, 2), compression="gzip")
    data.id.write_direct_chunk((0, 0), zlib.compress(bytes(32)))


def packed_zeros(file, _):
    """64 MB of zeros in 64 kB: what the file holds, but not what a feature file of ours needs to."""
    data = file.create_dataset("image", (1 << 23, 2), "f4", chunks=(1 << 23, 2), compression="gzip")
    squeeze = zlib.compressobj(9)
    packed = b"".join(squeeze.compress(bytes(1 << 22)) for _ in range(16)) + squeeze.flush()
    data.id.write_direct_chunk((0, 0), packed)


def references(file, _):
    file["x"] = np.zeros((4, 2))
    file.create_dataset("image", (4,), h5py.ref_dtype)[:] = [file["x"].ref] * 4


def made(*args, **options):
    return lambda file, _: file.create_dataset("image", *args, **options)


def outside(file, secret):
    file.create_dataset("image", (4, 2), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def linked(file, secret):
    file["image"] = h5py.ExternalLink(str(secret), "x")


def soft(file, _):
    file["x"] = np.zeros((4, 2))
    file["image"] = h5py.SoftLink("/x")


def nested(file, _):
    file["image/x"] = np.zeros((4, 2))


ELSEWHERE, NO_NUMBERS, TOO_MUCH = "its data lie elsewhere", "not numbers", "declares more than the file holds"
HDF5 = {
    "external storage": (outside, ELSEWHERE),
    "external link": (linked, ELSEWHERE),
    "soft link": (soft, ELSEWHERE),
    "virtual": (virtual, ELSEWHERE),
    "references": (references, NO_NUMBERS),
    "strings": (made(data=["a", "b"], dtype=h5py.string_dtype()), "2 text"),
    "lists": (made((4,), h5py.vlen_dtype(np.float32)), NO_NUMBERS),
    "complex": (made(data=np.zeros((4, 2), complex)), NO_NUMBERS),
    "huge": (huge, TOO_MUCH),
    "huge and packed": (made((1 << 30, 2), "f4", chunks=(1024, 2), compression="gzip"), TOO_MUCH),
    "a huge chunk": (huge_chunk, TOO_MUCH),
    "unknown filter": (
        made(data=np.arange(8).reshape(4, 2), chunks=(4, 2), scaleoffset=4),
        "packed by an unknown filter",
    ),
    "empty": (made(data=h5py.Empty("f4")), "empty"),
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_is_read_for_plain_numbers_inside_the_file_only(tmp_path, canary, kind):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["text"] = np.zeros((4, 2))
        make, reason = HDF5[kind]
        make(file, canary.path)
    words = rf"f:image \(.*{reason}\) cannot be image.*: .*f\.h5: choose one with `maps="
    with pytest.raises(DataError, match=words) as caught:
        matrices.read([path], ())
    assert "\n" not in str(caught.value)
    (image,) = (array for array in list_arrays(path) if array.name == "image")
    with pytest.raises(DataError, match="array 'image' cannot be read"):
        image.read()


FORGED = {kind: make for kind, (make, _) in HDF5.items()} | {"packed zeros": packed_zeros, "a group": nested}


def forge(path, fill):
    """A file that says it is ours, sealed by our own code, with what ``fill`` puts into it."""
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w", userblock_size=sealed.USER_BLOCK) as file:
        fill(file)
    about = {"recipe": {"kind": "image"}, "made_with": {}, "rows": 3, "ok": 3, "dim": 2}
    hdf5.seal(part, path, {"kind": "features"} | about)


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", FORGED)
def test_a_right_digest_opens_no_door(tmp_path, canary, kind):
    path = tmp_path / "image-x.h5"
    forge(path, lambda file: FORGED[kind](file, canary.path))
    with pytest.raises(DamagedError, match="is not a plain dataset") as caught:
        feature_file.read_features(path)
    assert "\n" not in str(caught.value)


HONEST = {
    "x": np.zeros((3, 2), np.float32),
    "item": np.arange(3, dtype=np.int32),
    "valid": np.ones(3, np.uint8),
    "source": np.zeros((3, 16), np.uint8),
    "ids": np.frombuffer(b"abc", np.uint8),
    "id_ends": np.arange(1, 4),
}


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in HONEST),
        {"item": np.array([0, 1, 3], np.int32)},
        {"item": np.array([0, 1, -1], np.int32)},
        {"item": np.arange(3.0)},
        {"x": np.zeros((4, 2), np.float32)},
        {"x": np.zeros(3, np.float32)},
        {"ids": np.frombuffer(b"\xff\xfe\xff", np.uint8)},
    ],
    ids=lambda change: " ".join(f"{name}-{'none' if x is None else x.dtype}" for name, x in change.items()),
)
def test_a_sealed_file_of_other_arrays(tmp_path, change):
    path = tmp_path / "image-x.h5"
    arrays = {name: x for name, x in (HONEST | change).items() if x is not None}
    forge(path, lambda file: [file.create_dataset(name, data=x) for name, x in arrays.items()])
    with pytest.raises(DamagedError, match="its arrays are not those of a feature file"):
        feature_file.read_features(path)


# ---------------------------------------------------------------------------------------------- NumPy and MATLAB


def header(shape, kind="<f8"):
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": kind, "fortran_order": False, "shape": shape})
    return raw.getvalue()


def zipped(path, content, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("image.npy", content)


def write_numpy(kind, folder, trap):
    """A hostile .npy or .npz; returns its path and the reason by which it is refused."""
    path = folder / ("f.npz" if "npz" in kind else "image.npy")
    pickled = np.array([[Evil(trap), 1]], object)
    return path, {
        "objects npy": lambda: np.save(path, pickled, allow_pickle=True) or NO_NUMBERS,
        "objects npz": lambda: np.savez(path, image=pickled) or NO_NUMBERS,
        "huge npy": lambda: path.write_bytes(header((1 << 40, 2)) + b"\0" * 64) and TOO_MUCH,
        "huge npz": lambda: zipped(path, header((1 << 40, 2)) + b"\0" * 64) or TOO_MUCH,
        "bzip2 npz": lambda: zipped(path, header((4, 2)) + b"\0" * 64, zipfile.ZIP_BZIP2) or "packed in an unknown way",
        "text npy": lambda: np.save(path, np.array(["a", "b"])) or "2 text",
        "huge text npy": lambda: path.write_bytes(header((1 << 40,), "<U8") + b"\0" * 64) and TOO_MUCH,
        "records npy": lambda: np.save(path, np.zeros(3, [("a", "f4"), ("b", "i4")])) or NO_NUMBERS,
    }[kind]()


NUMPY = ["objects npy", "objects npz", "huge npy", "huge npz", "bzip2 npz", "text npy", "huge text npy", "records npy"]


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("kind", NUMPY)
def test_numpy_files_hold_no_objects_and_no_more_than_they_say(tmp_path, trap, kind):
    path, reason = write_numpy(kind, tmp_path, trap)
    with pytest.raises(DataError, match=rf"image \(.*{reason}.*\) cannot be image"):
        matrices.read([path], ())


@pytest.mark.faults(EVIDENCE)
@pytest.mark.parametrize("value", [{"a": 1.0}, np.array([{"a": 1}, 2], object), "text", np.zeros((3, 2), complex)])
def test_matlab_files_of_the_wrong_kind(tmp_path, value):
    path = tmp_path / "f.mat"
    scipy.io.savemat(path, {"image": value, "text": np.ones((3, 2))})
    with pytest.raises((DataError, UsageError)) as caught:
        matrices.read([path], ())
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the naive way


@pytest.mark.slow
@pytest.mark.faults(EVIDENCE)
def test_what_the_plain_way_does(tmp_path, faults):
    canary, jobs = Canary(tmp_path / "canary.h5"), []
    for kind in HDF5:
        with h5py.File(tmp_path / f"{kind}.h5", "w") as file:
            HDF5[kind][0](file, canary.path)
        jobs.append(("open hdf5", tmp_path / f"{kind}.h5", 0))
    for n, kind in enumerate(NUMPY):
        (tmp_path / str(n)).mkdir()
        jobs.append(("open numpy", write_numpy(kind, tmp_path / str(n), tmp_path / str(n) / "trap")[0], 0))
    for name in ("checkpoint.pt", "pytorch_model.bin", "net.pth"):
        (tmp_path / name).mkdir()
        torch.save({"weight": Evil(tmp_path / name / "trap")}, tmp_path / name / name)
        jobs.append(("open torch", tmp_path / name / name, 0))
    canary.close()
    faults.naive_tried = len(jobs)
    faults.naive_survived = sum(outcome in ("same", "refused") for outcome in naive.outcomes(jobs, tmp_path))
    assert all((tmp_path / name / "trap").exists() for name in ("0", "1", "checkpoint.pt", "net.pth"))
    faults.tried = faults.survived = 1
