"""Uploads, original photos, sizes and thumbnails: bounded, upright, and the same wherever the photo lies."""

import io
import re

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

import pyarrow
from PIL import Image
from pyarrow import parquet
from serving import Seen, form, photo

from cmrhash.errors import DataError
from cmrhash.show.html.photo_sizes import PhotoSizes
from cmrhash.show.server.originals import REDRAWN, TooLarge, can_show, original
from cmrhash.show.server.query_photos import PhotoGone, QueryPhotos


def saved(kind, size=(40, 20), **options):
    out = io.BytesIO()
    Image.new("RGB", size, options.pop("colour", "red")).save(out, kind, **options)
    return out.getvalue()


def turned():
    """EXIF of a photo that was taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_uploads_are_kept_under_their_digest_within_bounds():
    photos = QueryPhotos(count=3, size=10**6)
    contents = [saved("PNG", (40 + n, 20)) for n in range(4)]
    digests = [photos.keep(content) for content in contents[:3]]
    assert digests == [photos.keep(content) for content in contents[:3]]  # the same again
    assert photos.get(digests[0]).content == contents[0]  # which makes it the latest
    photos.keep(contents[3])
    with pytest.raises(PhotoGone, match="no longer on the server"):
        photos.get(digests[1])
    assert photos.get(digests[0]).content == contents[0]
    assert photos.bytes == sum(len(photos.get(d).content) + len(photos.get(d).thumb) for d in list(photos._kept))
    few = QueryPhotos(count=100, size=int(2.5 * len(saved("PNG", (999, 999)))))
    for n in range(5):
        few.keep(saved("PNG", (999, 990 + n)))
        assert few.bytes <= few.size
    with pytest.raises(DataError, match="not a readable photo"):
        few.keep(b"no photo")
    photos.keep(contents[3])


def test_an_upload_that_is_gone_is_told_in_plain_words(hasher, serve, made):
    with serve(hasher, kept_photos=1) as client:
        first = client.post("/", **form(photo(made, 3))).headers["location"]
        assert client.get(first).status_code == 200
        client.post("/", **form(photo(made, 4)))
        gone = client.get(first)
        assert gone.status_code == 410
        assert "This photo is no longer on the server" in gone.text
        assert "Choose the photo again." in gone.text
        assert not Seen(gone.text).all("input", type="hidden", name="photo")  # the next search is not by it
        assert client.get(first.replace("/?photo=", "/asked/")).status_code == 410


@pytest.mark.parametrize(
    ("kind", "media"), [("JPEG", "jpeg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp")]
)
def test_originals_are_sent_as_they_are(tmp_path, kind, media):
    content = saved(kind)
    (tmp_path / "photo").write_bytes(content)
    (tmp_path / "0.tar").write_bytes(b"x" * 700 + content + b"y" * 99)
    table = pyarrow.table({"image": [None, content]})
    parquet.write_table(table, tmp_path / "0.parquet")
    for image in ("photo", f"0.tar@700+{len(content)}", "0.parquet@image+1"):
        found = original(tmp_path, image, 10**6)
        assert (found.media, found.size) == (f"image/{kind.lower()}", len(content))
        assert b"".join(found.chunks) == content
        with pytest.raises(TooLarge, match="too large to show"):
            original(tmp_path, image, len(content) - 1)
        assert can_show(tmp_path, image, len(content))
        assert not can_show(tmp_path, image, len(content) - 1)


def test_an_original_that_browsers_do_not_show_is_redrawn(tmp_path):
    (tmp_path / "photo.tif").write_bytes(saved("TIFF", (3000, 1500)))
    found = original(tmp_path, "photo.tif", 10**8)
    content = b"".join(found.chunks)
    assert (found.media, found.size) == ("image/jpeg", len(content))
    with Image.open(io.BytesIO(content)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (REDRAWN, REDRAWN // 2))


def test_what_is_no_photo_has_no_original_and_no_size(tmp_path):
    (tmp_path / "text.jpg").write_text("<script>alert(1)</script>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    sizes = PhotoSizes(tmp_path)
    for image in (None, "text.jpg", "empty.jpg", "folder.jpg", "gone.jpg", "../out.jpg", "gone.tar@1+2"):
        assert original(tmp_path, image, 10**6) is None, image
        assert sizes.of(image) is None, image


def test_a_photo_too_large_is_told_and_its_page_shows_the_thumbnail(hasher, serve):
    with serve(hasher, max_photo=100) as client:
        answer = client.get("/photo/i3", headers={"accept": "text/html"})
        assert (answer.status_code, "This photo is too large to show" in answer.text) == (413, True)
        shown = client.get("/item/i3").text
        assert "/photo/" not in shown
        assert re.search(r'<figure><img src="/thumb/i3', shown)


def test_sizes_are_those_of_the_upright_photo(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved("JPEG"))
    (tmp_path / "b.jpg").write_bytes(saved("JPEG", exif=turned()))
    content = saved("JPEG", exif=turned())
    (tmp_path / "0.tar").write_bytes(b"x" * 512 + content)
    sizes = PhotoSizes(tmp_path)
    assert [sizes.of(name) for name in ("a.jpg", "b.jpg", f"0.tar@512+{len(content)}")] == [
        (40, 20),
        (20, 40),
        (20, 40),
    ]
    (tmp_path / "a.jpg").unlink()
    assert sizes.of("a.jpg") == (40, 20)  # kept
