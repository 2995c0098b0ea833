"""Small data sets as their archives lie on a disk: photos that can be read, every item complete."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmrhash.data import sample
from cmrhash.data.readers import iaprtc12_lists, wikipedia
from cmrhash.data.readers.iaprtc12_lists import LABELS, WORDS

NOUNS = {"en": ["dog", "cat", "tree", "house"], "de": ["Hund", "Katze", "Baum", "Haus"]}
COUNT = 32
KARPATHY_SPLITS = ["train", "restval", "val", "test"]
STYLES = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"


def put(path: Path, content: str | bytes = b"jpeg", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))


def draw_photo(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    """A small JPEG of coloured noise around a mean colour."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 255, 3)
    pixels = np.clip(colour + rng.integers(-30, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)


def write_manifest(root: Path, count: int = COUNT, splits: bool = True) -> Path:
    """Photos and ``manifest.jsonl``; every fifth item is a query, every fourth of the others val."""
    lines = []
    for n in range(count):
        kind = n % 4
        draw_photo(root / "images" / f"{n}.jpg", kind * 1000 + n)
        entry: dict[str, Any] = {
            "id": f"i{n}",
            "image": f"images/{n}.jpg",
            "texts": {lang: [f"{words[kind]} {n}"] for lang, words in NOUNS.items()},
            "labels": [NOUNS["en"][kind]],
        }
        if splits:
            entry["splits"] = ["query"] if n % 5 == 0 else ["database", "val" if n % 4 == 1 and n < 20 else "train"]
        lines.append(json.dumps(entry, ensure_ascii=False))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_iaprtc12(root: Path) -> None:
    """The two archives beside each other. The built-in sample has their inner layout."""
    sample.draw(root / "iaprtc12", count=COUNT)
    labels = root / "saiaprtc12ok/benchmark/saiapr_tc-12"
    labels.parent.mkdir(parents=True)
    (root / "iaprtc12/saiapr_tc-12").rename(labels)


def list_line(photo: str, *labels: int, between: str = " ") -> str:
    """A line of IAPR TC-12 as lists."""
    bits = ["01"[n % 7 == 0] for n in range(WORDS)] + ["01"[n in labels] for n in range(1, LABELS + 1)]
    return between.join([photo, *bits]) + "\n"


def write_iaprtc12_lists(root: Path) -> None:
    lines = []
    for n in range(COUNT):
        draw_photo(root / f"JPEGImages/00/{n}.jpg", n)
        put(root / f"annotations/00/{n}.txt", f"a {NOUNS['en'][n % 4]}")
        lines.append(list_line(f"00/{n}.jpg", n % 4 + 1))
    train, test, retrieval = iaprtc12_lists.LISTS
    put(root / train, "".join(lines[:20]))
    put(root / test, "".join(lines[20:26]))
    put(root / retrieval, "".join(lines[:20] + lines[26:]))


def wikipedia_xml(text: str) -> str:
    """The file of a section of an article."""
    return (
        f'<document id="x" cat="3">\n<text>\n{text}\n\n</text>\n<imageset>\n<image>x</image>\n</imageset>\n</document>'
    )


def write_wikipedia(root: Path) -> None:
    put(root / "categories.list", "art\nbiology\n")
    lines = []
    for n in range(COUNT):
        draw_photo(root / "images" / ("art", "biology")[n % 2] / f"p{n}.jpg", n)
        put(root / f"texts/t-{n}.xml", wikipedia_xml(f"About a {NOUNS['en'][n % 4]}"))
        lines.append(f"t-{n}\tp{n}\t{n % 2 + 1}\n")
    for name, part in zip(wikipedia.LISTS, (lines[:-10], lines[-10:]), strict=True):
        put(root / name, "".join(part))


def write_pascal(root: Path) -> None:
    for n in range(COUNT):
        name = NOUNS["en"][n % 4]
        draw_photo(root / f"dataset/{name}/2008_{n}.jpg", n)
        put(root / f"sentence/{name}/2008_{n}.txt", f"A {name}.\nIt is number {n}\n")


def karpathy(count: int = 8) -> str:
    """Karpathy's file for that many photos of Flickr30k, one of every four in each of his splits."""
    images: list[dict[str, Any]] = [
        {
            "filename": f"{n}.jpg",
            "split": KARPATHY_SPLITS[n % 4],
            "sentences": [{"raw": f"A dog, number {n}.\n", "tokens": ["a"]}, {"raw": " "}, {"raw": "A dög."}],
        }
        for n in range(count)
    ]
    return json.dumps({"dataset": "flickr30k", "images": images})


def write_flickr30k(root: Path) -> None:
    put(root / "dataset_flickr30k.json", karpathy(COUNT))
    _photos_and_german(root, "flickr30k-images")


def write_flickr8k(root: Path) -> None:
    put(root / "Flickr8k.token.txt", "".join(f"{n}.jpg#0\tA {NOUNS['en'][n % 4]} .\n" for n in range(COUNT)))
    _photos_and_german(root, "Flicker8k_Dataset")


def _photos_and_german(root: Path, folder: str) -> None:
    for n in range(COUNT):
        draw_photo(root / folder / f"{n}.jpg", n)
    put(root / "multi30k/train_images.txt", "".join(f"{n}.jpg\n" for n in range(COUNT)))
    put(root / "multi30k/train.de", "".join(f"Ein {NOUNS['de'][n % 4]}.\n" for n in range(COUNT)))


def write_fashion(root: Path) -> None:
    rows = [
        f"{n},Men,Apparel,Topwear,{'Shirts' if n % 2 else 'Tees'},Blue,Fall,2011,Casual,Tee {n}" for n in range(COUNT)
    ]
    put(root / "styles.csv", "\n".join([STYLES, *rows]))
    for n in range(COUNT):
        draw_photo(root / f"images/{n}.jpg", n)


def write_mirflickr(root: Path) -> None:
    for n in range(1, COUNT + 1):
        draw_photo(root / f"mirflickr/im{n}.jpg", n)
        put(root / f"mirflickr/meta/tags/tags{n}.txt", f"{NOUNS['en'][n % 4]}\nnikon\n")
    for kind, name in enumerate(NOUNS["en"]):
        numbers = [n for n in range(1, COUNT + 1) if n % 4 == kind]
        put(root / f"mirflickr25k_annotations_v080/{name}.txt", "".join(f"{n}\n" for n in numbers))


def write_nuswide(root: Path) -> None:
    names = [f"{NOUNS['en'][n % 4]}/{n:04d}_{n + 2000}" for n in range(COUNT)]
    for n, name in enumerate(names):
        draw_photo(root / f"Flickr/{name}.jpg", n)
    put(root / "ImageList/Imagelist.txt", "".join(name.replace("/", "\\") + ".jpg\n" for name in names))
    for kind, name in enumerate(NOUNS["en"]):
        put(
            root / f"Groundtruth/AllLabels/Labels_{name}.txt", "".join("01"[n % 4 == kind] + "\n" for n in range(COUNT))
        )
    tags = [f"{n + 2000}      {NOUNS['en'][n % 4]} nikon \n" for n in range(COUNT)]
    put(root / "NUS_WID_Tags/All_Tags.txt", "".join(reversed(tags)))


def coco_json(photos: dict[int, str], annotations: list[dict[str, Any]], categories: dict[int, str]) -> str:
    """A file of captions or, with categories, of instances; ``photos``: image id -> name."""
    content: dict[str, Any] = {
        "info": {"year": 2017},
        "images": [{"license": 3, "file_name": name, "id": number} for number, name in photos.items()],
        "annotations": [entry | {"id": n} for n, entry in enumerate(annotations)],
    }
    if categories:
        content["categories"] = [{"supercategory": "any", "id": n, "name": name} for n, name in categories.items()]
    return json.dumps(content)


def write_coco(root: Path) -> None:
    categories = {1 + 30 * n: noun for n, noun in enumerate(NOUNS["en"])}
    for split, numbers in (("train", range(8, COUNT)), ("val", range(8))):
        photos = {n: f"{n:012}.jpg" for n in numbers}
        for n, name in photos.items():
            draw_photo(root / f"{split}2017" / name, n)
        captions = [{"image_id": n, "caption": f"A {NOUNS['en'][n % 4]}, {k}."} for k in range(5) for n in numbers]
        objects = [{"image_id": n, "category_id": 1 + 30 * (n % 4), "segmentation": [[1.5, 2]]} for n in numbers]
        put(root / f"annotations/captions_{split}2017.json", coco_json(photos, captions, {}))
        put(root / f"annotations/instances_{split}2017.json", coco_json(photos, objects, categories))


def write_folder(root: Path) -> None:
    for n in range(COUNT):
        draw_photo(root / f"{n % 3}/{n}.jpg", n)
        put(root / f"{n % 3}/{n}.txt", f"A {NOUNS['en'][n % 4]}.\nIt is number {n}\n")


def write_imagefolder(root: Path) -> None:
    for folder, numbers in {"train": range(20), "validation": range(20, 24), "test": range(24, COUNT)}.items():
        for n in numbers:
            draw_photo(root / folder / f"{n}.jpg", n)
        rows = [f'{n}.jpg,"A {NOUNS["en"][n % 4]}, number {n}",{NOUNS["en"][n % 4]}' for n in numbers]
        put(root / folder / "metadata.csv", "\n".join(["file_name,text,label", *rows]))


def tar_of(members: dict[str, str | bytes]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            raw = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return out.getvalue()


def write_webdataset(root: Path) -> None:
    """Two tars, in which every photo has two captions and a label."""
    for shard in range(2):
        members: dict[str, str | bytes] = {}
        for n in range(shard * COUNT // 2, (shard + 1) * COUNT // 2):
            photo = root / ".photo.jpg"
            draw_photo(photo, n)
            members[f"{n:04d}.jpg"] = photo.read_bytes()
            members[f"{n:04d}.txt"] = f"A {NOUNS['en'][n % 4]}.\nIt is number {n}\n"
            members[f"{n:04d}.json"] = json.dumps({"label": NOUNS["en"][n % 4]})
            photo.unlink()
        put(root / f"{shard:05d}.tar", tar_of(members))


def write_table(root: Path) -> None:
    """Photos and ``captions.csv``, in which every photo has a caption in two languages and a label."""
    rows = [f"{n}.jpg,A {NOUNS['en'][n % 4]},Ein {NOUNS['de'][n % 4]},{NOUNS['en'][n % 4]}" for n in range(COUNT)]
    put(root / "captions.csv", "\n".join(["filename,caption,caption_de,label", *rows]))
    for n in range(COUNT):
        draw_photo(root / f"images/{n}.jpg", n)


def write_mat_lists(root: Path) -> None:
    """Paths of the author's machine, captions as characters and labels, in files of MATLAB up to 7.2."""
    import scipy.io

    for n in range(COUNT):
        draw_photo(root / f"images/im{n}.jpg", n)
    arrays = {
        "index": np.array([f"/home/author/data/set/im{n}.jpg" for n in range(COUNT)]),
        "caption": np.array([f"A {NOUNS['en'][n % 4]}, number {n}" for n in range(COUNT)]),
        "label": np.eye(4, dtype=np.uint8)[np.arange(COUNT) % 4],
    }
    for name, x in arrays.items():
        scipy.io.savemat(root / f"{name}.mat", {"category" if name == "label" else name: x})


WRITERS = {
    "iaprtc12": write_iaprtc12,
    "iaprtc12-lists": write_iaprtc12_lists,
    "wikipedia": write_wikipedia,
    "pascal": write_pascal,
    "flickr30k": write_flickr30k,
    "flickr8k": write_flickr8k,
    "fashion": write_fashion,
    "mirflickr": write_mirflickr,
    "nuswide": write_nuswide,
    "coco": write_coco,
    "folder": write_folder,
    "imagefolder": write_imagefolder,
    "webdataset": write_webdataset,
    "mat-lists": write_mat_lists,
    "manifest": write_manifest,
    "table": write_table,
}
