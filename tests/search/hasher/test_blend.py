"""Several queries as one, many queries at once, and the codes themselves."""

import json
import sys

import numpy as np
import pytest
from small_searches import photo

from cmrhash.errors import UsageError
from cmrhash.search import hasher as module
from cmrhash.search.hasher import Hasher
from cmrhash_cli.main import main


def unit(x):
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))


def of_item(hasher, n, view="image"):
    of = hasher.views[view]
    return unit(of.embedding[np.flatnonzero(of.codes.item == n)[0]])


def test_a_blend_is_the_mean_of_the_wanted_minus_the_mean_of_the_unwanted(made, hasher):
    text, image = unit(hasher.embed_text("dog 4", "en")), unit(hasher.embed_image(photo(made, 3)))
    for found, wanted in (
        (hasher.blend("dog 4", photo(made, 3), lang="en"), (text + image) / 2),
        (hasher.blend(like=["i3", "i8"]), (of_item(hasher, 3) + of_item(hasher, 8)) / 2),
        (hasher.blend("dog 4", like=["i8"], lang="en"), (text + of_item(hasher, 8)) / 2),
        (
            hasher.blend(like=["i3"], unlike=["i8", "i9"]),
            of_item(hasher, 3) - (of_item(hasher, 8) + of_item(hasher, 9)) / 2,
        ),
        (hasher.blend(like=["i3"], by="text", lang="de"), of_item(hasher, 3, "text-de")),
        (hasher.blend(hasher.embed_text("dog 4", "en") * 7, photo(made, 3), lang="en"), (text + image) / 2),
    ):
        np.testing.assert_allclose(found, unit(wanted), atol=1e-4)
        assert (found.dtype, found.shape) == (np.float32, (16,))


def test_one_query_alone_blends_to_itself(hasher):
    alone = hasher.search(hasher.blend("dog 4", lang="en"), lang="en", k=40)
    wanted = hasher.search("dog 4", lang="en", k=40)
    np.testing.assert_allclose([hit.score for hit in alone], [hit.score for hit in wanted], atol=3e-6)
    assert hasher.search(hasher.blend(like=["i3"]), to="image", k=40)[0].score == 1.0


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("nothing to search for", lambda hasher: hasher.blend()),
        ("nothing to search for", lambda hasher: hasher.blend(unlike=["i3"])),
        ("cancel each other", lambda hasher: hasher.blend(like=["i3"], unlike=["i3"])),
        ("no item 'nope'", lambda hasher: hasher.blend(like=["nope"])),
        (r"no item 'i3\.png'.*did you mean i3\?", lambda hasher: hasher.blend(like=["i3.png"])),
        ("no item 'nope'", lambda hasher: hasher.blend(like=["i3"], unlike=["nope"])),
        ("unknown value 'sound'", lambda hasher: hasher.blend(like=["i3"], by="sound")),
        ("packed codes hold no real numbers", lambda hasher: hasher.blend(hasher.views["image"].codes.packed[0])),
        ("a query is a int", lambda hasher: hasher.blend(7)),
    ],
)
def test_what_cannot_be_blended(hasher, words, call):
    with pytest.raises(UsageError, match=words):
        call(hasher)


# ---------------------------------------------------------------------------------------------- many queries


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_many_queries_are_answered_as_one_by_one(made, hasher, monkeypatch, batch):
    monkeypatch.setattr(module, "BATCH", batch)
    code = hasher.views["image"].codes.packed[0]
    queries = ["dog 4", photo(made, 3), "a cat", code, "Katze 5", photo(made, 8), hasher.views["image"].embedding[1]]
    together = hasher.search(queries, k=5)
    assert len(together) == len(queries)
    for query, hits in zip(queries, together, strict=True):
        alone = hasher.search(query, k=5)
        assert [hit.lang for hit in hits] == [hit.lang for hit in alone]
        assert [hit.modality for hit in hits] == [hit.modality for hit in alone]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-4)
    assert hasher.search([], k=5) == []


def test_sentences_of_a_language_are_embedded_together(hasher, monkeypatch):
    calls = []
    embed = Hasher.embed_text
    monkeypatch.setattr(
        Hasher, "embed_text", lambda self, t, lang: calls.append((len(t), lang)) or embed(self, t, lang)
    )
    hasher.search(["dog 4", "Katze 5", "a cat", "Hund 3", "a dog"], k=3)
    assert calls == [(3, "en"), (2, "de")]


# ---------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(("args", "view"), [(("image",), "image"), (("text", "en"), "text-en"), (("text",), "text-en")])
def test_codes_are_those_that_are_searched(hasher, args, view):
    ids, packed = hasher.codes(*args)
    of = hasher.views[view]
    assert ids == [hasher.dataset.items[item].id for item in of.codes.item[of.database]]
    np.testing.assert_array_equal(packed, of.codes.packed[of.database])
    assert (packed.dtype, packed.shape) == (np.uint8, (40, 2))


def test_other_codes_are_refused(hasher):
    with pytest.raises(UsageError, match="'sound' is no modality"):
        hasher.codes("sound")
    with pytest.raises(UsageError, match="no language 'fr'"):
        hasher.codes("text", "fr")


# ---------------------------------------------------------------------------------------------- doubt


def test_a_sentence_of_other_words_is_doubted(hasher):
    assert hasher.doubt("dog 4", "en") is None
    assert hasher.doubt("dog in the neige", "en") is not None
    nothing = "'xyzzy plugh': none of its words is in the captions (en); the run may not know them, or the language"
    assert hasher.doubt("xyzzy plugh", "en") == nothing
    assert "only 1 of its 3 words are in the captions (en)" in hasher.doubt("dog xyzzy plugh", "en")
    assert hasher.doubt("...", "en") is None
    assert hasher.doubt("xyzzy" * 100, "en").startswith(f"'{'xyzzy' * 40}...': none of its words is")


def test_a_sentence_with_more_words_than_its_encoder_reads_is_doubted(hasher):
    reads = "the encoder reads at most 512 word pieces at its start, and it has 513 words"
    assert hasher.doubt("dog " * 513, "en") == f"'{'dog ' * 50}...': {reads}"
    assert hasher.doubt("dog " * 512, "en") is None
    assert "word pieces" not in (hasher.doubt("hund " * 513, "de") or "")


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(made, monkeypatch, capsys):
    monkeypatch.chdir(made)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", "search", *args, "--device", "cpu"])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return call


def test_the_command_blends(command, hasher, made, tmp_path):
    for args, query, vector in (
        (
            ("dog 4", "--photo", "mine/images/3.jpg"),
            {"text": "dog 4", "photo": "mine/images/3.jpg"},
            hasher.blend("dog 4", photo(made, 3), lang="en"),
        ),
        (("--like", "i3", "--like", "i8"), {"like": ["i3", "i8"]}, hasher.blend(like=["i3", "i8"], lang="en")),
        (
            ("dog 4", "--like", "i3", "--unlike", "i8"),
            {"text": "dog 4", "like": ["i3"], "unlike": ["i8"]},
            hasher.blend("dog 4", like=["i3"], unlike=["i8"], lang="en"),
        ),
    ):
        code, out, err = command(*args, "--lang", "en", "--k", "5", "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["query"] == query
        hits = hasher.search(vector, lang="en", k=5)
        np.testing.assert_allclose([hit["score"] for hit in found["results"]], [hit.score for hit in hits], atol=1e-4)
    assert command("--photo", "mine/images/3.jpg", "--json")[1] == command("mine/images/3.jpg", "--json")[1]
    sheet = tmp_path / "found.html"
    assert command("dog 4", "--like", "i3", "--lang", "en", "--html", str(sheet))[0] == 0
    assert "dog 4, like i3" in sheet.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("another query beside --id", ["--id", "i3", "--like", "i8"]),
        ("no query: give one of", ["--unlike", "i8"]),
        ("two photos", ["mine/images/3.jpg", "--photo", "mine/images/4.jpg"]),
        ("several queries have no features in common", ["--like", "i3", "--rank", "features"]),
        ("another query, or --html, beside --queries", ["dog", "--queries", "q.txt"]),
        ("another query, or --html, beside --queries", ["--like", "i3", "--queries", "q.txt"]),
        (r"cannot read the queries \(no such file or directory\): gone.txt", ["--queries", "gone.txt"]),
    ],
)
def test_the_command_refuses_in_one_line(command, words, args):
    import re

    code, out, err = command(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err), err


def test_a_file_of_queries_gives_a_line_of_json_each(command, hasher, made, tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("dog 4\n\n  Katze 5 \nmine/images/3.jpg\n", encoding="utf-8-sig")
    code, out, err = command("--queries", str(path), "--k", "3")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["query"], line["lang"]) for line in lines] == [
        ("dog 4", "en"),
        ("Katze 5", "de"),
        ("mine/images/3.jpg", "en"),
    ]
    for line, query in zip(lines, ("dog 4", "Katze 5", photo(made, 3)), strict=True):
        hits = hasher.search(query, k=3)
        np.testing.assert_allclose([hit["score"] for hit in line["results"]], [hit.score for hit in hits], atol=1e-4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n \n", "no query in the file"),
        (b"dog 4\nxyzzy\n", "--lang: line 2: cannot detect the query language: .*queries.txt: choose one of de, en"),
        (
            b"dog 4\n mine/images/3.jpg\ngone.jpg\nxyzzy/a.png\n",
            r"2 photos are missing \(line 3: gone.jpg, line 4: xyzzy/a.png\): .*queries.txt: fix these lines",
        ),
        (b"\xff\xfe\x00dog", r"cannot read the queries \(not UTF-8\)"),
    ],
)
def test_a_bad_file_of_queries_is_refused_before_any_answer(command, tmp_path, content, words):
    import re

    path = tmp_path / "queries.txt"
    path.write_bytes(content)
    code, out, err = command("--queries", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err), err


def test_the_command_doubts_a_strange_sentence_and_answers_it(command):
    code, out, err = command("xyzzy plugh", "--lang", "en", "--json")
    assert code == 0
    assert len(json.loads(out)["results"]) == 10
    assert err.startswith("warning: 'xyzzy plugh': none of its words is in the captions (en)")
    assert err.count("\n") == 1
    assert command("xyzzy plugh", "--lang", "en", "--json", "--quiet")[2] == ""
