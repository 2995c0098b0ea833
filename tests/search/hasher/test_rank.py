"""Order of the results of a ``Hasher`` by each rank, against scores computed item by item."""

import json

import numpy as np
import pytest
from small_searches import photo

from cmrhash.errors import UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.codes import unpack
from cmrhash.retrieval.ranking import asymmetric_scores
from cmrhash.search import finder
from cmrhash.search.hasher import Hasher


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_scores(hasher, embedding, view, rank, among=None):
    """[(-score, id)] of all items of a view, sorted. among: rows that are scored."""
    of = hasher.views[view]
    found = []
    for row in of.database if among is None else among:
        signs = np.where(unpack(of.codes.packed[row : row + 1], of.codes.bits)[0], 1.0, -1.0)
        score = {
            "hamming": 1 - 2 * np.mean((embedding >= 0) != (signs > 0)),
            "asymmetric": cosine(embedding, signs),
            "rerank": cosine(embedding, of.embedding[row]),
        }[rank]
        found.append((-round(float(score), 6), hasher.dataset.items[of.codes.item[row]].id))
    return sorted(found)


def same(hits, slow):
    """Whether hits have these scores, and these ids where scores differ by more than rounding."""
    np.testing.assert_allclose([-hit.score for hit in hits], [score for score, _ in slow[: len(hits)]], atol=3e-6)
    known = {ident: score for score, ident in slow}
    assert all(abs(known[hit.id] + hit.score) < 3e-6 for hit in hits)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    keys = [(-hit.score, hit.id) for hit in hits]
    assert keys == sorted(keys)


@pytest.mark.parametrize("rank", ["hamming", "asymmetric", "rerank"])
@pytest.mark.parametrize("to", ["image", "text"])
def test_scores_are_those_of_the_slow_twin(hasher, rank, to):
    embedding = hasher.embed_text("Katze 5", "de").astype(np.float64)
    hits = hasher.search("Katze 5", lang="de", to=to, k=12, rank=rank)
    assert len(hits) == 12
    same(hits, slow_scores(hasher, embedding, "image" if to == "image" else "text-de", rank))
    bits = hasher.views["image"].codes.bits
    if rank == "hamming":
        assert [hit.score for hit in hits] == [round(1 - 2 * hit.distance / bits, 6) for hit in hits]


def test_images_and_texts_are_merged_by_score(hasher):
    embedding = hasher.embed_text("Katze 5", "de").astype(np.float64)
    hits = hasher.search("Katze 5", lang="de", to="both", k=60)
    both = [
        (*own, kind)
        for kind, view in (("image", "image"), ("text", "text-de"))
        for own in slow_scores(hasher, embedding, view, "rerank")
    ]
    assert {hit.modality for hit in hits} == {"image", "text"}
    np.testing.assert_allclose([hit.score for hit in hits], [-score for score, *_ in sorted(both)[:60]], atol=3e-6)


def test_only_the_shortlist_is_reranked(hasher):
    embedding = hasher.embed_text("dog 4", "en")
    codes = hasher.views["image"]
    _, places = codes.index.search(hasher.encode_text(["dog 4"], "en"), 6)
    slow = slow_scores(hasher, embedding.astype(np.float64), "image", "rerank", codes.database[places[0]])
    same(hasher.search("dog 4", lang="en", k=6, rank="rerank:5"), slow)
    assert len({hit.id for hit in hasher.search("dog 4", lang="en", k=6, rank="rerank:5")}) == 6


def test_reranking_is_the_default_and_a_hasher_can_have_another_rank(made, hasher):
    args = {"lang": "en", "k": 20}
    assert hasher.search("dog 4", **args) == hasher.search("dog 4", **args, rank="rerank:1000")
    other = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", rank="asymmetric")
    assert other.search("dog 4", **args) == hasher.search("dog 4", **args, rank="asymmetric")
    assert other.search("dog 4", **args, rank="rerank") == hasher.search("dog 4", **args)
    assert other.search("dog 4", **args) != hasher.search("dog 4", **args)
    with pytest.raises(UsageError, match="unknown ranking 'best'"):
        Hasher.load(made / "runs/manifest/triplet-16", made / "cache", rank="best")


def test_codes_rank_by_hamming_and_embeddings_by_their_numbers(hasher):
    embeddings = hasher.embed_text(["dog 4", "a cat"], "en")
    codes = hasher.encode_text(["dog 4", "a cat"], "en")
    for n, text in enumerate(("dog 4", "a cat")):
        assert hasher.search(codes[n], lang="en") == hasher.search(text, lang="en", rank="hamming")
        assert hasher.search(embeddings[n], lang="en") == hasher.search(text, lang="en")
    assert hasher.search(codes, lang="en") == [hasher.search(code, lang="en") for code in codes]
    assert hasher.search(embeddings, lang="en") == [hasher.search(one, lang="en") for one in embeddings]
    assert hasher.search(codes[0], rank="hamming") == hasher.search(codes[0])
    for rank in ("asymmetric", "rerank:50"):
        with pytest.raises(UsageError, match=f"packed codes cannot be ranked by {rank}"):
            hasher.search(codes[0], rank=rank)


def test_photos_are_ranked_by_the_features_of_the_encoder(made, hasher):
    data = ExtractedDataset.open(made / "cache", None)
    features = data.features(hasher.views["image"].view)
    own = {int(item): features.features.x[row] for item, row in zip(features.items, features.rows, strict=True)}
    query = hasher.image_features([photo(made, 3)])[0].astype(np.float64)
    slow = sorted((-cosine(query, x), hasher.dataset.items[item].id) for item, x in own.items())
    hits = hasher.search(photo(made, 3), rank="features", k=40)
    assert {hit.modality for hit in hits} == {"image"}
    assert hits[0].id == "i3"
    np.testing.assert_allclose([hit.score for hit in hits], [-score for score, _ in slow], atol=3e-6)
    by_hamming = {hit.id: hit.distance for hit in hasher.search(photo(made, 3), to="image", rank="hamming", k=40)}
    assert {hit.id: hit.distance for hit in hits} == by_hamming
    by_item = hasher.search_item("i3", rank="features", k=40)
    np.testing.assert_allclose([hit.score for hit in by_item], [hit.score for hit in hits], atol=2e-3)
    assert (by_item[0].id, by_item[0].score) == ("i3", 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda hasher, _: hasher.search("dog 4", lang="en", rank="features"),
        lambda hasher, _: hasher.search("dog 4", lang="en", to="text", rank="features"),
        lambda hasher, path: hasher.search(path, to="text", rank="features"),
        lambda hasher, path: hasher.search(path, to="both", rank="features"),
        lambda hasher, _: hasher.search_item("i3", by="text", lang="en", rank="features"),
        lambda hasher, _: hasher.search_item("i3", to="text", rank="features"),
        lambda hasher, _: hasher.search(hasher.views["image"].codes.packed[0], rank="features"),
        lambda hasher, _: hasher.nearest(hasher.views["image"].embedding[0], "image", "en", 5, rank="features"),
    ],
)
def test_nothing_but_photos_by_a_photo_is_ranked_by_features(made, hasher, call):
    with pytest.raises(UsageError, match='`rank="features"` ranks photos by a photo.*by an item\'s image') as refused:
        call(hasher, photo(made, 3))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rank", [None, "asymmetric", "rerank:30"])
def test_a_store_gives_the_shortlist_and_the_run_the_scores(made, tmp_path, hasher, rank):
    from cmrhash.search.publish import deploy
    from cmrhash.search.stores import open_store

    store = open_store(f"faiss:{tmp_path}")
    deploy(hasher.run, hasher.dataset, hasher.views, store)
    stored = Hasher.load(
        made / "runs/manifest/triplet-16", made / "cache", device="cpu", rank=rank, store=f"faiss:{tmp_path}"
    )
    for to in ("image", "both"):
        own = hasher.search("dog 4", lang="en", to=to, k=30, rank=rank)
        assert stored.search("dog 4", lang="en", to=to, k=30) == own
    with pytest.raises(UsageError, match="in the files of the run"):
        stored.search_item("i3", rank="features")
    code = hasher.encode_text(["dog 4"], "en")
    store.add(f"manifest-triplet-16-{hasher.views['image'].view}", [(["new photo"], code)])
    hits = stored.search("dog 4", lang="en", k=41)
    strange = next(hit for hit in hits if hit.id == "new photo")
    by_code = asymmetric_scores(hasher.embed_text(["dog 4"], "en"), code)[0, 0]
    assert (strange.distance, strange.score, strange.rank, strange.caption) == (0, by_code, 1, None)
    assert next(hit for hit in hits if hit.id != "new photo").score < 1


def test_equal_scores_come_by_id_wherever_the_rows_are(hasher):
    found = hasher.search(hasher.views["image"].codes.packed[0], to="image", k=40)
    keys = [(hit.distance, hit.id) for hit in found]
    assert keys == sorted(keys)
    for k in (1, 7, 39):
        assert hasher.search(hasher.views["image"].codes.packed[0], to="image", k=k) == found[:k]


def test_a_hit_that_is_searched_by_itself_scores_one(hasher):
    for rank in ("hamming", "rerank"):
        hits = hasher.search_item("i3", to="image", rank=rank, k=40)
        assert {(hit.score, hit.distance) for hit in hits if hit.id == "i3"} == {(1.0, 0)}


def test_candidates_are_as_many_as_the_rank_says(hasher, monkeypatch):
    asked = []
    scored = finder.cosine_scores
    monkeypatch.setattr(finder, "cosine_scores", lambda q, x: asked.append(len(x)) or scored(q, x))
    for rank, count in (("rerank:5", 9), ("rerank:20", 20), (None, 40)):
        hasher.search("dog 4", lang="en", k=9, rank=rank)
        assert asked.pop() == count


def test_the_command_ranks_as_the_library(made, hasher, monkeypatch, capsys):
    import sys

    from cmrhash_cli.main import main

    monkeypatch.chdir(made)

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", "search", *args, "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    for rank in ("hamming", "asymmetric", "rerank:9"):
        code, out, err = command("dog 4", "--lang", "en", "--k", "3", "--rank", rank, "--json")
        hits = hasher.search("dog 4", lang="en", k=3, rank=rank)
        assert (code, err) == (0, "")
        assert [(hit["score"], hit["id"]) for hit in json.loads(out)["results"]] == [(h.score, h.id) for h in hits]
    shown = command("dog 4", "--lang", "en", "--k", "3", "--rank", "rerank:9")[1]
    assert "score" in shown
    assert all(f"{hit.score:.3f}" in shown for hit in hits)
    by_photo = json.loads(command("mine/images/3.jpg", "--rank", "features", "--json")[1])["results"]
    assert {hit["modality"] for hit in by_photo} == {"image"}
    code, out, err = command("dog 4", "--rank", "asymetric")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--rank: unknown ranking 'asymetric': did you mean asymmetric?" in err
    assert command("dog 4", "--lang", "en", "--rank", "features")[0] == 2
