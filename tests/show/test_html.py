"""Documents, tables and thumbnails of the HTML layer."""

import io

import numpy as np
import pytest
from PIL import Image
from serving import Seen

from cmrhash.show.html.document import FILE_POLICY, document, picture, points, standalone, static, table
from cmrhash.show.html.scores import score_table
from cmrhash.show.html.thumbnails import SIDE, Thumbnails, data_uri

NASTY = """<script>alert(1)</script>'"><img src=x onerror=alert(1)> &amp; <!--"""


def test_every_part_takes_markup_for_text():
    parts = [table([NASTY], [[NASTY]], NASTY), points({NASTY: NASTY}), picture(NASTY, NASTY)]
    seen = Seen(document(NASTY, "", "".join(parts)))
    assert not seen.all("script")
    assert [image["src"] for image in seen.all("img")] == [NASTY]
    assert "".join(seen.words).count(NASTY) == 6  # title, caption, column, cell, name and value of the list
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)


def test_a_standalone_document_has_its_stylesheet_and_may_load_nothing():
    content = standalone("title", "<p>body</p>", ".more { color: red; }")
    assert Seen(content).all("meta", **{"http-equiv": "Content-Security-Policy", "content": FILE_POLICY})
    assert static("style.css").decode() + ".more { color: red; }</style>" in content
    assert not Seen(content).all("link")


def test_columns_of_numbers_are_aligned_right():
    seen = Seen(table(["name", "mAP", "seed"], [["2nd", "0.5", "1"], ["a", "-", ""]], "caption"))
    assert [cell.get("class") for cell in seen.all("th")] == [None, "n", "n"]
    assert [cell.get("class") for cell in seen.all("td")] == [None, "n", "n"] * 2
    assert seen.all("div", role="region", tabindex="0", **{"aria-label": "caption"})
    assert not Seen(table(["empty"], [], "caption")).all("td")


@pytest.mark.parametrize(
    ("relevance", "words"),
    [
        ("labels", ["en-de", "t2t", "0.500", "0.250", "0.600", "0.400-0.700", "0.900", "7", "9"]),
        ("pairs", ["en-de", "t2t", "real-valued", "0.200", "3.5", "7", "9"]),
    ],
)
def test_scores_are_read_out_of_the_rows_of_eval(relevance, words):
    row = {"relevance": relevance, "lang": "en", "database_lang": "de", "direction": "t2t", "queries": 7, "database": 9}
    row |= {"map": 0.5, "chance": 0.25, "map_real": 0.6, "map_pessimistic": 0.4, "map_optimistic": 0.7}
    row["precision_at"] = {"10": 0.9}
    row |= {f"hit_at{of}": {"1": hit} for of, hit in (("", 0.1), ("_real", 0.2), ("_chance", 0.0))}
    row |= {f"median_rank{of}": rank for of, rank in (("", 5.0), ("_real", 3.5), ("_chance", 8.0))}
    shown = Seen(score_table([row], "scores")).words
    assert any(shown[at : at + len(words)] == words for at in range(len(shown)))


def test_thumbnails_are_small_and_carry_no_metadata_and_are_kept_up_to_a_limit(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 255, (500, 900, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.jpg", exif=exif)
    one = Thumbnails(tmp_path).of("0.jpg")
    thumbs = Thumbnails(tmp_path, limit=int(2.5 * len(one)))
    for n in range(4):
        jpeg = thumbs.of(f"{n}.jpg")
        assert max(Image.open(io.BytesIO(jpeg)).size) == SIDE
        assert b"where I live" not in jpeg
        assert thumbs.bytes <= thumbs.limit
    (tmp_path / "3.jpg").unlink()
    assert thumbs.of("3.jpg")  # kept
    (tmp_path / "0.jpg").unlink()
    assert thumbs.of("0.jpg") is None  # dropped
    assert [thumbs.of(image) for image in (None, "gone.jpg", "../out.jpg")] == [None] * 3


def test_thumbnails_without_a_limit_count_what_was_missing(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    thumbs = Thumbnails(tmp_path, 4)
    assert data_uri(thumbs.of("0.png")).startswith("data:image/jpeg;base64,")
    assert data_uri(thumbs.of("gone.png")) == data_uri(thumbs.of(None)) == ""
    thumbs.of("0.png")
    assert thumbs.counts == (1, 1)
