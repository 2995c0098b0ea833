"""The reader of tables beside photos, on small tables with the quirks of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import put

from cmrhash.data.items import ImageTextDataset, Item, check, with_roles
from cmrhash.data.readers import table
from cmrhash.errors import DataError, UsageError


def lay(root: Path, content: str | bytes, *photos: str, name: str = "data.csv") -> Path:
    """A table and photos beside it; the path of the table."""
    put(root / name, content)
    for photo in photos or ("a.jpg", "b.jpg"):
        put(root / photo)
    return root / name


def read(*args: object, maps: tuple[str, ...] = (), **options: str) -> ImageTextDataset:
    return check(table.read(lay(*args, **options), maps))  # type: ignore[arg-type]


def items(*args: object, maps: tuple[str, ...] = (), **options: str) -> dict[str, Item]:
    return {item.id: item for item in read(*args, maps=maps, **options).items}


def labels(dataset: ImageTextDataset) -> dict[str, list[str]]:
    return {item.id: [dataset.classes[n] for n in item.labels] for item in dataset.items}


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("header", ["Filename,Caption", " IMAGE , sentence", "img,text_en", "path,EN", "photo,title"])
def test_usual_names_in_any_case_need_no_map(tmp_path: Path, header: str) -> None:
    assert items(tmp_path, f"{header}\na.jpg,A dog\n") == {"a.jpg": Item("a.jpg", "a.jpg", {"en": ("A dog",)}, ())}


def test_languages_stand_in_the_columns_names(tmp_path: Path) -> None:
    found = items(tmp_path, "image,caption,caption_de,fr,title_fr\na.jpg,A dog,Ein Hund,Un chien,Le chien\n")
    assert found["a.jpg"].texts == {"de": ("Ein Hund",), "en": ("A dog",), "fr": ("Le chien",)}


def test_only_the_most_usual_name_of_a_language_counts_and_the_others_are_named(tmp_path: Path) -> None:
    dataset = read(tmp_path, "title,file,caption,url\nT,a.jpg,A dog,u\n")
    assert dataset.items[0].texts == {"en": ("A dog",)}
    assert dataset.found['columns not used (title, url; `maps=("ROLE=COLUMN",)` uses one)'] == 2


def test_photos_that_no_row_names_are_counted_and_a_row_without_a_caption_brings_one_in(tmp_path: Path) -> None:
    photos = ("in/a.jpg", "in/b.PNG", "in/c.jpg", "elsewhere/d.jpg", "in/words.txt")
    what = "other photos beside them in no row, left out"
    assert read(tmp_path, "file,caption\nin/a.jpg,A dog\n", *photos).found[what] == 2
    found = read(tmp_path, "file,caption\nin/a.jpg,A dog\nin/b.PNG,\nin/c.jpg,\n", *photos)
    assert what not in found.found
    assert [item.image for item in found.items if not item.texts] == ["in/b.PNG", "in/c.jpg"]


def test_maps_name_columns(tmp_path: Path) -> None:
    maps = ("image=where", "text.de=Untertitel", "text.de=mehr", "labels=tag", "split=part", "id=SKU")
    rows = ["where,untertitel,mehr,caption,tag,part,sku", "a.jpg,Hund,Tier,Dog,x,train,7", "b.jpg,Katze,,Cat,y,test,8"]
    found = items(tmp_path, "\n".join(rows), maps=maps)
    assert found["7"].texts == {"de": ("Hund", "Tier"), "en": ("Dog",)}
    assert found["8"].splits == {"query"}


def test_a_mapped_column_is_not_guessed_for_another_role(tmp_path: Path) -> None:
    assert items(tmp_path, "image,caption\na.jpg,Hund\n", maps=("text.DE=caption",))["a.jpg"].texts == {"de": ("Hund",)}


def test_a_map_may_say_that_there_is_no_column(tmp_path: Path) -> None:
    rows = "image,set,title\na.jpg,summer,T\n"
    item = items(tmp_path, rows, maps=("split=", "text="))["a.jpg"]
    assert (item.texts, item.splits) == ({}, frozenset())
    assert items(tmp_path, rows, maps=("split=", "image="))["row 2"].image is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("image=filname", r"maps: no column 'filname' .*did you mean filename\? the columns are filename, caption, id"),
        ("imge=filename", r"maps: cannot parse 'imge=filename': did you mean image\?"),
        ("image", "maps: cannot parse 'image'"),
        ("text.d e=caption", "'d e' is not a language code"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, "filename,caption,id\na.jpg,A dog,1\n", maps=(option,))


def test_a_second_image_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="maps image a second time"):
        read(tmp_path, "a,b,caption\na.jpg,b.jpg,x\n", maps=("image=a", "image=b"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("imgae,caption", r"no column of photos \(the columns are imgae, caption\): .*did you mean imgae\?"),
        ("image,captoin", r"no column of texts \(the columns are image, captoin\): .*did you mean captoin\?"),
    ],
)
def test_missing_columns_are_refused_with_the_nearest(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, f"{header}\na.jpg,A dog\n")


# ---------------------------------------------------------------------------------------------- captions and items


def test_rows_of_a_photo_are_one_item(tmp_path: Path) -> None:
    rows = "image,comment_number,comment,id\na.jpg,0,A dog,10\nb.jpg,0,A cat,11\n./a.jpg,1,A pet,12\na.jpg,2,A dog,13\n"
    found = items(tmp_path, rows)
    assert {ident: item.texts["en"] for ident, item in found.items()} == {
        "10": ("A dog", "A pet", "A dog"),
        "11": ("A cat",),
    }


def test_rows_of_a_mapped_id_are_one_item_and_may_share_a_photo(tmp_path: Path) -> None:
    rows = "image,text,sku\na.jpg,x,1\na.jpg,y,2\n,z,1\n"
    found = items(tmp_path, rows, maps=("id=sku",))
    assert {i: (item.image, item.texts["en"]) for i, item in found.items()} == {
        "1": ("a.jpg", ("x", "z")),
        "2": ("a.jpg", ("y",)),
    }


def test_an_id_of_two_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3 gives id '1' the photo 'b\.jpg', line 2 gives it 'a\.jpg'"):
        read(tmp_path, "image,text,id\na.jpg,x,1\nb.jpg,y,1\n")


def test_numbered_columns_and_lists_are_several_captions(tmp_path: Path) -> None:
    texts = ("A dog", "A pet")
    assert items(tmp_path, "image,caption_0,caption1\na.jpg,A dog,A pet\n")["a.jpg"].texts == {"en": texts}
    assert items(tmp_path, 'image,captions\na.jpg,"[""A dog"", ""A pet""]"\n')["a.jpg"].texts == {"en": texts}
    assert items(tmp_path, "image,captions\na.jpg,\"['A dog', 'A pet']\"\n")["a.jpg"].texts == {"en": texts}
    assert items(tmp_path, "image,caption\na.jpg,[A dog\n")["a.jpg"].texts == {"en": ("[A dog",)}
    rows = lines({"image": "a.jpg", "captions": list(texts)}, {"image": "b.jpg", "captions": None})
    assert items(tmp_path, rows, name="data.jsonl")["a.jpg"].texts == {"en": texts}


def test_captions_are_repeated_as_in_the_table_unless_a_row_adds_a_label(tmp_path: Path) -> None:
    rows = "image,caption,label\na.jpg,x,dog\na.jpg,x,dog\na.jpg,x,cat\na.jpg,y,pet\n"
    assert items(tmp_path, rows)["a.jpg"].texts == {"en": ("x", "x", "y")}


def test_incomplete_items_stay_and_empty_ones_are_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, "image,caption\na.jpg,\n,A dog\ngone.jpg,\n , \ngone2.jpg,A cat\n")
    assert [(item.id, item.image, bool(item.texts)) for item in dataset.items] == [
        ("a.jpg", "a.jpg", False),
        ("row 3", None, True),
        ("gone2.jpg", None, True),
    ]
    assert dataset.found["items with neither photo nor text, left out"] == 1
    assert dataset.found["photos not found (gone.jpg, gone2.jpg)"] == 2


# ---------------------------------------------------------------------------------------------- labels and splits


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ('"dog "', "dog", (["dog"], ["dog"])),
        ("-1", "cat", ([], ["cat"])),
        ("NaN", "-1.0", ([], [])),
        ("", "  ", ([], [])),
        ("a;b,c", "d|e", (["a", "b,c"], ["d|e"])),
        ("a|b", '"c,d"', (["a", "b"], ["c,d"])),
        ('"a, b"', "c", (["a", "b"], ["c"])),
        ('"[""a,b"", ""-1"", 3]"', "c;", (["3", "a,b"], ["c"])),
    ],
)
def test_labels(tmp_path: Path, first: str, second: str, found: tuple[list[str], list[str]]) -> None:
    content = f"image\tcaption\ttags\na.jpg\tx\t{first}\nb.jpg\ty\t{second}\n"
    dataset = read(tmp_path, content)
    assert tuple(labels(dataset).values()) == found
    assert dataset.relevance == ("labels" if any(found) else "pairs")


def test_labels_of_rows_and_columns_are_joined(tmp_path: Path) -> None:
    rows = "image,text,kind,colour\na.jpg,x,shirt,red\na.jpg,x,tee,red\nb.jpg,y,-1,blue\n"
    dataset = read(tmp_path, rows, maps=("labels=kind", "label=colour"))
    assert labels(dataset) == {"a.jpg": ["colour:red", "kind:shirt", "kind:tee"], "b.jpg": ["colour:blue"]}
    rows = lines({"image": "a.jpg", "text": "x", "label": 3.0}, {"image": "b.jpg", "text": "y", "label": [True, -1]})
    assert labels(read(tmp_path, rows, name="data.jsonl")) == {"a.jpg": ["3"], "b.jpg": ["True"]}


def splits(root: Path, column: str, *names: str) -> list[set[str]]:
    rows = [f"{n}.jpg,text {n},x,{name}" for n, name in enumerate(names)]
    content = "\n".join([f"image,text,{column},split", *rows])
    dataset = check(with_roles(read(root, content, *(f"{n}.jpg" for n in range(len(names)))), seed=0))
    assert dataset.split_seed is None
    return [set(item.splits) for item in dataset.items]


def test_with_labels_the_train_items_are_in_the_database(tmp_path: Path) -> None:
    names = ("Train", "validation", "dev", "valid", "test", "query", "gallery", "database")
    train, val, query, rest = {"train", "database"}, {"val", "database"}, {"query"}, {"database"}
    assert splits(tmp_path, "label", *names) == [train, val, val, val, query, query, rest, rest]


def test_without_labels_the_test_items_are_the_database(tmp_path: Path) -> None:
    assert splits(tmp_path, "other", "train", "val", "test") == [{"train"}, {"val"}, {"query", "database"}]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "tset"), "line 3 gives the split 'tset'"),
        (("train", ""), r"1 items have no split, others have \(the first is in line 3\)"),
        (("train", "val"), "no row is 'test' in column split"),
        (("test", "test"), "no row is 'train' in column split"),
    ],
)
def test_splits_that_cannot_be_used_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=rf'{message}.*maps=\("split=",\)'):
        splits(tmp_path, "label", *names)


def test_two_splits_of_one_photo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3 gives 'a\.jpg' a second split"):
        read(tmp_path, "image,text,split\na.jpg,x,train\na.jpg,y,test\n")


def test_a_name_without_a_folder_is_sought_in_all_folders(tmp_path):
    root = lay(
        tmp_path, "image,caption\n1.jpg,one\nB.jpg,two\nboth.jpg,three\nx/1.jpg,four\n", "deep/2024/1.jpg", "deep/b.jpg"
    )
    put(tmp_path / "deep/both.jpg")
    put(tmp_path / "other/both.jpg")
    found = check(table.read(root))
    assert [item.image for item in found.items] == ["deep/2024/1.jpg", "deep/b.jpg", None, None]
    assert found.found["photos not found (both.jpg, x/1.jpg)"] == 2
