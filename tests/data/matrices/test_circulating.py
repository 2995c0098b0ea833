"""Feature files as they circulate: names of parts, several captions a photo, a group per photo, unused arrays."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from matrix_files import TR, N, npz, other, parts_of, read, safetensors

from cmrhash.data.matrices.over import lay_over
from cmrhash.errors import DataError, UsageError


def counts(dataset):
    return [dataset.count(role) for role in ("query", "database", "train", "val")]


def test_the_file_of_iapr(tmp_path, data):
    arrays = {"VDatabase": data["I"][:TR], "YDatabase": data["T"][:TR], "databaseL": data["L"][:TR]}
    arrays |= {"VTest": data["I"][TR:], "YTest": data["T"][TR:], "testL": data["L"][TR:]}
    dataset = read(npz(tmp_path / "f.npz", arrays))
    assert counts(dataset) == [N - TR, TR, TR - 1, 1]
    assert np.array_equal(dataset.ready["image"].x, data["I"])
    assert dataset.notes == ()


def test_tra_beside_tr_is_train_and_tr_the_database(tmp_path, data):
    rows = {"te": slice(TR, N), "tr": slice(0, TR), "tra": slice(0, 8)}
    dataset = read(
        npz(tmp_path / "f.npz", {f"{k}_{part}": x[at] for part, at in rows.items() for k, x in data.items()})
    )
    assert counts(dataset) == [N - TR, TR, 7, 1]
    alone = parts_of(data, te=rows["te"], tra=rows["tra"])
    assert counts(read(npz(tmp_path / "g.npz", alone))) == [N - TR, 8, 7, 1]


# ---------------------------------------------------------------------------------------------- several captions


@pytest.mark.parametrize("width", [5, 8])  # 8 is the width of the images, too
def test_a_multiple_of_the_photos_are_captions_side_by_side(tmp_path, data, width):
    text = np.random.default_rng(0).standard_normal((5 * N, width)).astype(np.float32)
    dataset = read(npz(tmp_path / "f.npz", {"image": data["I"], "text": text}))
    ready = dataset.ready["text-en"]
    assert np.array_equal(ready.x, text)
    assert ready.item.tolist() == [n // 5 for n in range(5 * N)]
    assert dataset.ready["image"].item is None
    assert dataset.found["text-en rows per photo, taken as its captions"] == 5


def test_several_captions_in_parts_stay_with_their_photos(tmp_path, data):
    text = np.arange(2 * N, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    arrays = {"I_tr": data["I"][:TR], "T_tr": text[: 2 * TR], "L_tr": data["L"][:TR]}
    arrays |= {"I_te": data["I"][TR:], "T_te": text[2 * TR :], "L_te": data["L"][TR:]}
    ready = read(npz(tmp_path / "f.npz", arrays)).ready["text-en"]
    assert ready.x[:, 0].tolist() == list(range(2 * N))
    with pytest.raises(DataError, match="differ in their number of columns"):
        read(npz(tmp_path / "g.npz", arrays | {"T_te": text[:10]}))


def test_columns_that_are_items_are_not_taken_for_captions(tmp_path, data):
    dataset = read(npz(tmp_path / "f.npz", {"image": data["I"].T, "text": np.repeat(data["I"].T, 2, 0)}))
    assert dataset.found["items"] == N


def test_features_of_captions_follow_the_captions_of_another_data_set(tmp_path, data):
    dataset = other([set()] * N)
    own = [("a", "b") if n % 2 else ("a",) for n in range(N)]
    items = tuple(replace(item, texts={"en": texts}) for item, texts in zip(dataset.items, own, strict=True))
    x = np.random.default_rng(0).standard_normal((sum(map(len, own)), 4))
    ready = lay_over(replace(dataset, items=items), [npz(tmp_path / "f.npz", {"text": x})], ()).ready["text-en"]
    assert np.array_equal(ready.x, x)
    assert ready.item.tolist() == [n for n, texts in enumerate(own) for _ in texts]


# ---------------------------------------------------------------------------------------------- groups of photos


def descriptors(path, x, names):
    with h5py.File(path, "w") as file:
        for name, row in zip(names, x, strict=True):
            file[f"{name}/global_descriptor"] = row
            file[f"{name}/image_size"] = [40, 32]
    return path


def test_a_group_per_photo_names_the_rows(tmp_path, data):
    names = [f"db/{n:02}.jpg" for n in range(N)]
    file = descriptors(tmp_path / "f.h5", data["I"], names)
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"photo {n}\n" for n in range(N)))
    dataset = read(file, maps=("image=global_descriptor",), captions=(str(captions),))
    assert [item.id for item in dataset.items] == names
    assert np.array_equal(dataset.ready["image"].x, data["I"])
    assert read(file, captions=(str(captions),)).ready["image"].name == "f"


def test_features_with_names_follow_the_photos_of_another_data_set(tmp_path, data):
    dataset = other([set()] * N)
    items = tuple(replace(item, image=f"images/{n}.jpg") for n, item in enumerate(dataset.items))
    dataset = replace(dataset, items=items)
    order = np.random.default_rng(0).permutation(N)[:-1]
    over = lay_over(dataset, [descriptors(tmp_path / "f.h5", data["I"][order], [f"{n}.jpg" for n in order])], ())
    lost = (set(range(N)) - set(order.tolist())).pop()
    assert np.isnan(over.ready["image"].x[lost]).all()
    assert np.array_equal(over.ready["image"].x[order], data["I"][order])
    assert over.found["items without features of their name"] == 1
    with pytest.raises(DataError, match="none of the 30 items is named in f:global_descriptor"):
        lay_over(dataset, [descriptors(tmp_path / "f.h5", data["I"], [f"x{n}.jpg" for n in range(N)])], ())


# ---------------------------------------------------------------------------------------------- what is left over


def test_every_array_without_a_role_is_named_with_a_map(tmp_path, data):
    arrays = {"image": data["I"], "text": data["T"], "param_indexQuery": np.arange(3), "clipImgTest": data["I"]}
    arrays |= {"what": data["I"], "pixels": np.zeros(N, complex), "my_image_paths": np.array(["a"] * N)}
    dataset = read(npz(tmp_path / "f.npz", arrays))
    (note,) = dataset.notes  # one of a file
    roles = ["query=param_indexQuery", "image.query=clipImgTest", "ROLE=what", "ids=my_image_paths"]
    assert (
        note.partition("; to use them: ")[2] == f"`maps=({', '.join(f'{chr(34)}{role}{chr(34)}' for role in roles)})`"
    )
    assert note.startswith("not used: f:param_indexQuery (3 int64), f:clipImgTest (30 x 8 float32), f:what ")
    assert "pixels (30 complex128, not numbers)" in note
    many = read(npz(tmp_path / "g.npz", arrays | {f"a{n}": data["I"] for n in range(9)}))
    assert ", g:a2 (30 x 8 float32), and 6 more; to use them: " in many.notes[0]
    names = "param_indexQuery, clipImgTest, what, pixels, my_image_paths"
    assert dataset.found[f"arrays not used ({names})"] == 5
    over = lay_over(other([set()] * N), [tmp_path / "f.npz"], ("text=",))
    assert list(over.ready) == ["image"]
    assert not any("f:text" in note for note in over.notes)


def test_no_array_for_a_role(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    with pytest.raises(UsageError, match=r"known for text features.*or give captions with `captions`"):
        read(file, maps=("text=",))
    for wrong in ("query=", "image.query=", "labels=x="):
        with pytest.raises(UsageError, match="cannot parse|no such array"):
            read(file, maps=(wrong,))


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("shape", [(N, 0), (0, 3), (N, 1, 0)])
def test_an_array_without_numbers(tmp_path, data, shape):
    with pytest.raises(DataError, match=r"f:image \(.* float64\) is empty"):
        read(npz(tmp_path / "f.npz", {"image": np.zeros(shape), "text": data["T"]}))


# ---------------------------------------------------------------------------------------------- safetensors


def test_bfloat16_is_read_as_float32(tmp_path, data):
    halves = (data["I"].view(np.uint32) >> 16).astype(np.uint16)
    dataset = read(safetensors(tmp_path / "f.safetensors", {"image": halves, "text": data["T"]}))
    assert np.array_equal(dataset.ready["image"].x, (halves.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    "about", [{"data_offsets": [0, 1 << 40]}, {"shape": [1 << 30, 4]}, {"data_offsets": [-8, 952]}]
)
def test_a_tensor_outside_its_file(tmp_path, data, about):
    header = {"image": {"dtype": "F32", "shape": [N, 8], "data_offsets": [0, 960]} | about}
    text = json.dumps(header).encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data["I"].tobytes())
    with pytest.raises(DataError, match="declares more than the file holds"):
        read(path, maps=("text=image",))
