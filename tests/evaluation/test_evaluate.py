"""Scoring trained runs, against plain loops that know nothing of histograms and closed forms."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from cmrhash.config import EvalConfig, TrainConfig
from cmrhash.data import manifest
from cmrhash.errors import DamagedError, DataError, StaleError, UsageError
from cmrhash.evaluation import evaluate as module
from cmrhash.evaluation import saved_scores
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import read_codes
from cmrhash.evaluation.searches import Search, sides
from cmrhash.evaluation.trec import write_trec
from cmrhash.features.file import FeatureWriter, read_features
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.retrieval.metrics import average_precision_ranked
from cmrhash.training import runs
from cmrhash.training.heads import Head
from cmrhash.training.train import train

QUICK = TrainConfig(bits=8, epochs=4, batch=16, lr=0.01, hidden=16, dropout=0.1, device="cpu")


@pytest.fixture(scope="module")
def scored(make_cache, tmp_path_factory):
    """An extracted data set, its runs of 8 and 13 bits, and what eval says of them."""
    base = tmp_path_factory.mktemp("scored")
    dataset, folder = make_cache(base / "cache")
    for bits in (13, 8):
        train(replace(QUICK, bits=bits), dataset, folder, base / "runs")
    return base, dataset, folder, evaluate(EvalConfig(), dataset, folder, base / "runs")


@pytest.fixture
def mine(scored, tmp_path):
    """A copy that a test may change: (data set, its folder, runs)."""
    shutil.copytree(scored[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "cache" / "toy"
    return manifest.load(folder), folder, tmp_path / "runs"


def run_of(out, bits=8):
    return runs.open_run(out / "toy" / f"triplet-{bits}")


# ---------------------------------------------------------------------------------------------- the slow twin


def embed(run, folder, view, head=None):
    """[(item, embedding)] of the valid rows of a view, straight from heads and features. head: another view's."""
    features = read_features(folder / f"{view}-toy.h5")
    state = safetensors.torch.load_file(run.folder / runs.HEADS)
    mlp = Head(features.x.shape[1], run.bits, run.config["train"]["hidden"]).eval()
    of = (head or view) + "."
    mlp.load_state_dict({k.removeprefix(of): v for k, v in state.items() if k.startswith(of)})
    rows = [
        (item, x) for item, valid, x in zip(features.item.tolist(), features.valid, features.x, strict=True) if valid
    ]
    with torch.no_grad():
        return [(item, mlp(torch.from_numpy(x)[None])[0].numpy()) for item, x in rows]


def first_captions(rows):
    return [row for at, row in enumerate(rows) if at == 0 or rows[at - 1][0] != row[0]]


def related(dataset, a, b):
    if dataset.relevance == "pairs":
        return a == b
    return bool(set(dataset.items[a].labels) & set(dataset.items[b].labels))


def rankings(run, dataset, folder, lang, direction, distance, other=None, head=None):
    """For each query: [(distance, relevant)] over the database. other: language that is searched; head: see embed."""
    text, found = f"text-{lang}", f"text-{other or lang}"
    names = {"i2t": ("image", text), "t2i": (text, "image"), "t2t": (text, found), "i2i": ("image", "image")}[direction]
    asks, sought = (embed(run, folder, name, head if name != "image" else None) for name in names)
    if run.relevance == "pairs":
        dataset = replace(dataset, relevance="pairs")
        searched = {row for row, item in enumerate(dataset.items) if "query" in item.splits}
    else:
        asks, sought = first_captions(asks), first_captions(sought)
        searched = {row for row, item in enumerate(dataset.items) if "database" in item.splits}
    return [
        [
            (distance(q, d), related(dataset, a, b))
            for place, (b, d) in enumerate(sought)
            if b in searched and not (names[0] == names[1] and place == at)
        ]
        for at, (a, q) in enumerate(asks)
        if "query" in dataset.items[a].splits
    ]


def hamming(a, b):
    return sum((x >= 0) != (y >= 0) for x, y in zip(a.tolist(), b.tolist(), strict=True))


def minus_cosine(a, b):
    return -float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def nearly_tied(ranking):
    """Distances as numbers of groups whose members differ by rounding only: their order is the processor's."""
    group, last, grouped = 0, None, []
    for distance, relevant in sorted(ranking):
        group += last is not None and distance - last > 1e-6
        last = distance
        grouped.append((group, relevant))
    return grouped


def in_order(ranking, sign):
    """The hits with the relevant of a tie first (-1) or last (1)."""
    return [hit for _, hit in sorted(ranking, key=lambda dh: (dh[0], sign * dh[1]))]


def between_the_orders(value, slow, figure):
    """The figure of real-valued rankings, which rounding may order in more than one way."""
    bounds = [mean(figure(in_order(nearly_tied(r), sign)) for r in slow) for sign in (-1, 1)]
    return min(bounds) - 1e-6 <= value <= max(bounds) + 1e-6


def expected_ap(ranking):
    """Place by place: a tie group's i-th place holds a relevant item with probability r / n."""
    total = sum(relevant for _, relevant in ranking)
    if not total:
        return None
    value, before, found = 0.0, 0, 0
    for distance in sorted({d for d, _ in ranking}):
        group = [relevant for d, relevant in ranking if d == distance]
        n, r = len(group), sum(group)
        for i in range(1, n + 1):
            others = (i - 1) * (r - 1) / (n - 1) if n > 1 else 0
            value += r / n * (found + 1 + others) / (before + i)
        before, found = before + n, found + r
    return value / total


def ap_at(hits, k, rule):
    """AP@k of one order, by the rules' own words."""
    total, precisions, found = sum(hits), [], 0
    for rank, hit in enumerate(hits, 1):
        found += hit
        if hit and (rank <= k or rule == "first"):
            precisions.append(found / rank)
    if rule == "first":
        precisions = precisions[: min(total, k)]
    divisor = {"min": min(total, k), "R": total, "hits": len(precisions), "first": min(total, k)}[rule]
    return sum(precisions) / divisor if divisor else 0.0


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


# ---------------------------------------------------------------------------------------------- numbers


def test_map_and_its_companions_equal_the_slow_twin(scored):
    base, dataset, folder, result = scored
    assert len(result.rows) == 8
    for row in result.rows:
        run = run_of(base / "runs", row["bits"])
        slow = rankings(run, dataset, folder, row["lang"], row["direction"], hamming)
        assert row["map"] == row["map_expected"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        for order, sign in (("optimistic", -1), ("pessimistic", 1)):
            ordered = [in_order(r, sign) for r in slow]
            assert row[f"map_{order}"] == pytest.approx(mean(ap_at(h, len(h), "min") for h in ordered), abs=1e-9)
        assert row["chance"] == pytest.approx(mean(sum(hit for _, hit in r) / len(r) for r in slow))
        real = rankings(run, dataset, folder, row["lang"], row["direction"], minus_cosine)
        assert between_the_orders(row["map_real"], real, lambda hits: ap_at(hits, len(hits), "min"))
        assert (row["queries"], row["queries_without_relevant"], row["database"]) == (20, 0, 100)


def test_training_shows_in_the_scores(scored):
    for row in scored[3].rows:
        assert row["map"] > row["chance"] + 0.05
        assert row["map_pessimistic"] < row["map_expected"] < row["map_optimistic"]


def test_the_lists_by_radius_end_at_the_whole_database(scored):
    for row in scored[3].rows:
        curve = row["pr_by_radius"]
        assert len(curve["precision"]) == len(curve["recall"]) == row["bits"] + 1
        assert curve["recall"][-1] == 1
        assert curve["precision"][-1] == pytest.approx(row["chance"], abs=1e-5)
        assert set(row["precision_at"]) == {"1", "5", "10", "50"}


@pytest.mark.parametrize("rule", ["min", "R", "hits", "first"])
def test_map_at_k_is_the_mean_over_random_tie_orders(scored, rule):
    base, dataset, folder, _ = scored
    config = EvalConfig(bits=(8,), langs=("en",), map_at=7, map_at_rule=rule)
    row = evaluate(config, dataset, folder, base / "runs").rows[0]
    rng = np.random.default_rng(0)
    slow = rankings(run_of(base / "runs"), dataset, folder, "en", "i2t", hamming)
    values = []
    for ranking in slow:
        for _ in range(150):
            order = sorted(ranking, key=lambda dh: (dh[0], rng.random()))
            values.append(ap_at([hit for _, hit in order], 7, rule))
    assert row["map"] == pytest.approx(mean(values), abs=0.01)


@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
def test_the_asked_tie_order_is_the_printed_one(scored, ties):
    base, dataset, folder, _ = scored
    result = evaluate(EvalConfig(ties=ties), dataset, folder, base / "runs")
    assert ties in result.protocol["ties"]
    for row in result.rows:
        assert row["map"] == row[f"map_{ties}"]
        assert row["map_optimistic"] >= row["map_expected"] >= row["map_pessimistic"]


def test_what_is_scored_lies_in_the_index(scored, mine, monkeypatch):
    """Other codes in the index, and nowhere else, change the score to theirs."""
    (dataset, folder, out), result = mine, scored[3]
    (run_of(out).folder / runs.METRICS).unlink()

    def shuffled(run):
        views = read_codes(run)
        for name, view in views.items():
            codes = view.index.packed
            views[name] = replace(view, index=BinaryIndex.build(np.ascontiguousarray(codes[::-1]), run.bits))
        return views

    monkeypatch.setattr("cmrhash.evaluation.run_codes.read_codes", shuffled)
    config = EvalConfig(bits=(8,), langs=("en",))
    row = evaluate(config, dataset, folder, out).rows[0]
    slow = rankings(run_of(out), dataset, folder, "en", "i2t", hamming)
    turned = [[(d, hit) for (d, _), (_, hit) in zip(r[::-1], r, strict=True)] for r in slow]
    assert row["map"] == pytest.approx(mean(map(expected_ap, turned)), abs=1e-9)
    before = next(r for r in result.rows if (r["bits"], r["lang"], r["direction"]) == (8, "en", "i2t"))
    assert abs(row["map"] - before["map"]) > 0.02  # the test would see it


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_a_query_without_a_label_is_left_out_and_counted(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if i.id in ("i0", "i6") else i)
    run, _ = train(replace(QUICK, epochs=1), *made, tmp_path / "runs")
    row = evaluate(EvalConfig(langs=("de",)), *made, tmp_path / "runs").rows[0]
    assert (row["queries"], row["queries_without_relevant"]) == (18, 2)
    slow = rankings(run, *made, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_no_query_with_a_relevant_item_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    train(replace(QUICK, epochs=1), *made, tmp_path / "runs")
    with pytest.raises(DataError, match="no query has a relevant item"):
        evaluate(EvalConfig(), *made, tmp_path / "runs")


def test_items_that_lack_a_part_are_on_no_side_that_needs_it(make_cache, tmp_path):
    def change(item):
        lacks = {"i0": {"texts": {"en": item.texts["en"]}}, "i2": {"texts": {}}, "i6": {"image": None}}
        return replace(item, **lacks.get(item.id, {}))

    made = make_cache(tmp_path, change=change)
    run, _ = train(replace(QUICK, epochs=1), *made, tmp_path / "runs")
    rows = {(r["lang"], r["direction"]): r for r in evaluate(EvalConfig(), *made, tmp_path / "runs").rows}
    assert [rows["de", d]["queries"] for d in ("i2t", "t2i")] == [19, 19]  # no image of i6, no caption of i0
    assert [rows["en", d]["queries"] for d in ("i2t", "t2i")] == [19, 20]
    assert [rows["en", d]["database"] for d in ("i2t", "t2i")] == [99, 100]
    for (lang, direction), row in rows.items():
        slow = rankings(run, *made, lang, direction, hamming)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


# ---------------------------------------------------------------------------------------------- instance retrieval


@pytest.fixture(scope="module")
def paired(make_cache, tmp_path_factory):
    """The same photos by pairs, an item with a single English caption among them: (runs, data set, folder, run)."""

    def change(item):
        return replace(item, texts={**item.texts, "en": item.texts["en"][:1]}) if item.id == "i12" else item

    base = tmp_path_factory.mktemp("paired")
    made = make_cache(base / "cache", change=change)
    run, _ = train(replace(QUICK, relevance="pairs", method="supcon"), *made, base / "runs")
    return base / "runs", *made, run


def hit_within(hits, k):
    return any(hits[:k])


def first_rank(hits):
    return hits.index(True) + 1 if True in hits else None


def hit_chance(ranking, k):
    """Probability that the top k of a random tie order hold a hit, group by group."""
    before = 0
    for distance in sorted({d for d, _ in ranking}):
        group = [hit for d, hit in ranking if d == distance]
        if any(group):
            places = min(max(k - before, 0), len(group))
            return 1 - math.comb(len(group) - sum(group), places) / math.comb(len(group), places)
        before += len(group)
    return None


def expected_rank(ranking):
    """Of the first hit, the mean over its group's orders."""
    nearest = min((d for d, hit in ranking if hit), default=None)
    if nearest is None:
        return None
    group = [hit for d, hit in ranking if d == nearest]
    before = sum(d < nearest for d, _ in ranking)
    n, r = len(group), sum(group)
    first = [i * math.comb(n - i, r - 1) / math.comb(n, r) for i in range(1, n - r + 2)]
    return before + sum(first)


def median(values):
    return float(np.median([v for v in values if v is not None]))


@pytest.mark.parametrize("direction", ["i2t", "t2i", "t2t"])
def test_by_pairs_all_captions_count_as_in_the_slow_twin(paired, direction):
    out, dataset, folder, run = paired
    rows = evaluate(EvalConfig(relevance="pairs", directions=(direction,)), dataset, folder, out).rows
    found = [(row["lang"], row.get("database_lang")) for row in rows]
    assert found == (
        [(a, b) for a in ("de", "en") for b in ("de", "en")] if direction == "t2t" else [("de", None), ("en", None)]
    )
    for row in rows:
        own = row["lang"], direction
        slow = rankings(run, dataset, folder, *own, hamming, other=row.get("database_lang"))
        queries = sum(any(hit for _, hit in r) for r in slow)
        assert (row["queries"], row["queries_without_relevant"]) == (queries, len(slow) - queries)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        assert row["median_rank"] == pytest.approx(median(map(expected_rank, slow)))
        real = rankings(run, dataset, folder, *own, minus_cosine, other=row.get("database_lang"))
        ranks = [median(first_rank(in_order(nearly_tied(r), sign)) for r in real) for sign in (-1, 1)]
        assert ranks[0] <= row["median_rank_real"] <= ranks[1]
        for k in (1, 5, 10):
            assert row["hit_at"][str(k)] == pytest.approx(mean(hit_chance(r, k) for r in slow))
            assert row["hit_at_chance"][str(k)] == pytest.approx(
                mean(hit_chance([(0, hit) for _, hit in r], k) for r in slow)
            )
            with_hit = [r for r in real if any(hit for _, hit in r)]
            assert between_the_orders(row["hit_at_real"][str(k)], with_hit, lambda hits, k=k: hit_within(hits, k))


def test_by_pairs_the_gallery_is_that_of_the_query_items(paired):
    out, dataset, folder, _ = paired
    result = evaluate(EvalConfig(relevance="pairs"), dataset, folder, out)
    counts = {(row["lang"], row["direction"]): (row["queries"], row["database"]) for row in result.rows}
    assert counts == {
        ("de", "i2t"): (20, 40),
        ("de", "t2i"): (40, 20),
        ("en", "i2t"): (20, 39),
        ("en", "t2i"): (39, 20),
    }
    assert set(result.rows[0]["hit_at"]) == {"1", "5", "10"}
    assert {row["relevance"] for row in result.rows} == {"pairs"}
    protocol = result.protocol
    assert protocol["relevance"] == "the item's own counterpart"
    assert protocol["captions"].startswith("all")
    assert protocol["database"].startswith("20 database items, 80 train")


def test_a_caption_without_another_one_has_no_counterpart_in_its_language(paired):
    out, dataset, folder, _ = paired
    rows = evaluate(EvalConfig(relevance="pairs", langs=("en",), directions=("t2t",)), dataset, folder, out).rows
    assert [(row["queries"], row["queries_without_relevant"]) for row in rows] == [(38, 1)]


def test_where_no_item_has_two_captions_a_language_is_not_searched_by_itself(make_cache, tmp_path):
    def change(item):
        texts = {lang: texts[:1] for lang, texts in item.texts.items()}
        return replace(item, labels=(), texts=texts)

    made = make_cache(tmp_path, change=change, relevance="pairs")
    train(replace(QUICK, epochs=1), *made, tmp_path / "runs")
    config = EvalConfig(directions=("t2t",))
    rows = evaluate(config, *made, tmp_path / "runs").rows
    assert [(row["lang"], row["database_lang"]) for row in rows] == [("de", "en"), ("en", "de")]
    assert all(row["chance"] == pytest.approx(1 / 20) for row in rows)
    with pytest.raises(UsageError, match="no item has two captions"):
        evaluate(replace(config, langs=("en",)), *made, tmp_path / "runs")


def test_runs_are_chosen_by_the_relevance_they_were_trained_by(mine):
    dataset, folder, out = mine
    with pytest.raises(UsageError, match=r"by pairs \(there: triplet-13, triplet-8\).*--relevance labels"):
        evaluate(EvalConfig(relevance="pairs"), dataset, folder, out)
    run, _ = train(replace(QUICK, relevance="pairs", epochs=1), dataset, folder, out)
    run.folder.rename(run.folder.with_name("renamed"))
    assert {row["bits"] for row in evaluate(EvalConfig(), dataset, folder, out).rows} == {8, 13}
    rows = evaluate(EvalConfig(relevance="pairs"), dataset, folder, out).rows
    assert {row["run"] for row in rows} == {str(run.folder.with_name("renamed"))}


# ---------------------------------------------------------------------------------------------- texts by texts


@pytest.mark.parametrize("overlap", [False, True])
def test_texts_by_texts_and_images_by_images_leave_the_query_itself_out(make_cache, tmp_path, overlap):
    def change(item):
        return replace(item, splits=item.splits | {"database"} if overlap else item.splits)

    made = make_cache(tmp_path, change=change)
    run, _ = train(replace(QUICK, epochs=2), *made, tmp_path / "runs")
    rows = evaluate(EvalConfig(directions=("t2t", "i2i")), *made, tmp_path / "runs").rows
    who = [(row["lang"], row.get("database_lang"), row["direction"]) for row in rows]
    assert who == [*((a, b, "t2t") for a in ("de", "en") for b in ("de", "en")), (None, None, "i2i")]
    for row in rows:
        slow = rankings(run, *made, row["lang"], row["direction"], hamming, other=row.get("database_lang"))
        itself = overlap and row.get("database_lang") == row["lang"]
        assert {len(r) for r in slow} == {119 if itself else 120 if overlap else 100}
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
        assert row["chance"] == pytest.approx(mean(sum(hit for _, hit in r) / len(r) for r in slow))
        real = rankings(run, *made, row["lang"], row["direction"], minus_cosine, other=row.get("database_lang"))
        assert between_the_orders(row["map_real"], real, lambda hits: ap_at(hits, len(hits), "min"))


# ---------------------------------------------------------------------------------------------- borrowed languages


@pytest.fixture
def english(mine):
    """A run trained on English alone beside the joint ones."""
    dataset, folder, out = mine
    run, _ = train(replace(QUICK, langs=("en",)), dataset, folder, out)
    return dataset, folder, out, run


def seal_text(folder, lang, name, change):
    """Texts of a language as another encoder would leave them: the same rows under another recipe."""
    old = read_features(folder / f"text-{lang}-toy.h5")
    recipe = {**old.recipe, **change}
    path = folder / f"text-{lang}-{name}.h5"
    with FeatureWriter(path, old.item, old.ids, old.x.shape[1], recipe, len(old.x)) as writer:
        writer.commit(0, old.x * 2, old.valid, old.source)
        writer.seal({})
    return path


def test_a_head_scores_another_language_through_the_same_text_encoder(english):
    dataset, folder, out, run = english
    rows = [row for row in evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows if row["trained_langs"] == ["en"]]
    assert [(row["lang"], row["head_lang"]) for row in rows] == [("de", "en")] * 2 + [("en", "en")] * 2
    for row in rows:
        head = "text-en" if row["lang"] == "de" else None
        slow = rankings(run, dataset, folder, row["lang"], row["direction"], hamming, head=head)
        assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)
    result = evaluate(EvalConfig(langs=("de",), directions=("t2t",)), dataset, folder, out)
    assert [row["database_head_lang"] for row in result.rows] == ["de", "de", "en"]
    assert "de by the head of en" in result.protocol["untrained languages"]


def test_a_language_by_another_encoder_is_refused_and_left_out(english):
    dataset, folder, out, run = english
    (folder / "text-de-toy.h5").rename(folder.parent / "kept.h5")
    shutil.rmtree(out / "toy" / "triplet-8")
    shutil.rmtree(out / "toy" / "triplet-13")
    with pytest.raises(UsageError, match=r"no features for language 'de' \(there: en\)"):
        evaluate(EvalConfig(langs=("de",)), dataset, folder, out)
    (folder.parent / "kept.h5").rename(folder / "text-de-toy.h5")
    seal_text(folder, "de", "bert", {"weights_sha256": "0123456789abcdef"})
    (folder / "text-de-toy.h5").unlink()
    with pytest.raises(UsageError, match="weights_sha256 = 0123456789ab, those of text-en with nothing.*--lang de"):
        evaluate(EvalConfig(langs=("de",)), dataset, folder, out)
    assert {row["lang"] for row in evaluate(EvalConfig(), dataset, folder, out).rows} == {"en"}
    assert run.langs == ("en",)


def test_a_language_that_is_extracted_later_makes_the_codes_anew(english):
    dataset, folder, out, run = english
    (folder / "text-de-toy.h5").rename(folder.parent / "kept.h5")

    def langs():
        rows = evaluate(EvalConfig(bits=(8,), methods=("triplet",)), dataset, folder, out).rows
        return {row["lang"] for row in rows if row["run"] == str(run.folder)}

    shutil.rmtree(out / "toy" / "triplet-8")
    assert langs() == {"en"}
    (folder.parent / "kept.h5").rename(folder / "text-de-toy.h5")
    assert langs() == {"de", "en"}
    before = (run.folder / runs.CODES).stat().st_mtime_ns
    assert langs() == {"de", "en"}
    assert (run.folder / runs.CODES).stat().st_mtime_ns == before


def test_codes_outlive_the_features(english):
    dataset, folder, out, _ = english
    before = evaluate(EvalConfig(), dataset, folder, out).rows
    for path in folder.glob("*.h5"):
        path.unlink()
    assert evaluate(EvalConfig(), dataset, folder, out).rows == before
    assert [row for row in before if row["lang"] == "de"] == evaluate(
        EvalConfig(langs=("de",)), dataset, folder, out
    ).rows


# ---------------------------------------------------------------------------------------------- rows and protocol


def test_rows_say_what_they_are_of(scored):
    result = scored[3]
    who = [(r["method"], r["seed"], r["bits"], r["lang"], r["direction"]) for r in result.rows]
    assert who == [
        ("triplet", 0, bits, lang, direction)
        for bits in (8, 13)
        for lang in ("de", "en")
        for direction in ("i2t", "t2i")
    ]
    assert {r["dataset"] for r in result.rows} == {"toy"}
    assert all({"run", "collapsed", "ndcg_at", "hit_at", "precision_radius2"} <= set(r) for r in result.rows)


def test_the_protocol_says_how_it_was_made(scored):
    protocol = scored[3].protocol
    assert set(protocol) >= {"dataset", "queries", "database", "relevance", "metric", "ties", "epoch", "split", "seeds"}
    assert protocol["queries"].startswith("20 query items")
    assert protocol["database"].startswith("100 database items, 80 train")
    assert protocol["untrained_encoders"] == ["image", "text-de", "text-en"]
    assert protocol["encoders"]["image"] == "toy (toy), random weights"


def test_the_protocol_names_cut_and_rule(scored):
    base, dataset, folder, _ = scored
    config = EvalConfig(bits=(8,), map_at=50, map_at_rule="hits")
    metric = evaluate(config, dataset, folder, base / "runs").protocol["metric"]
    assert "mAP@50" in metric
    assert "hits" in metric


def test_what_is_printed_is_plain_json_and_stored_by_run(mine):
    dataset, folder, out = mine
    result = evaluate(EvalConfig(), dataset, folder, out)
    printed = json.loads(json.dumps(result.as_json(), allow_nan=False))
    for bits in (8, 13):
        stored = json.loads((out / "toy" / f"triplet-{bits}" / runs.METRICS).read_text())["scores"][0]
        assert [{**row, "run": str(out / f"toy/triplet-{bits}")} for row in stored["rows"]] == [
            row for row in printed["rows"] if row["bits"] == bits
        ]
        assert stored["protocol"]["metric"] == printed["protocol"]["metric"]


def test_nothing_is_scored_twice_and_what_was_scored_stays(mine, monkeypatch):
    dataset, folder, out = mine
    whole = evaluate(EvalConfig(), dataset, folder, out).rows
    metrics = run_of(out).folder / runs.METRICS
    metrics.unlink()
    german = evaluate(EvalConfig(bits=(8,), langs=("de",)), dataset, folder, out).rows
    assert [row["lang"] for row in saved_scores.shown(run_of(out))["rows"]] == ["de", "de"]
    top = evaluate(EvalConfig(bits=(8,), langs=("en",), map_at=5), dataset, folder, out).rows
    both = evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows
    assert both == [row for row in whole if row["bits"] == 8]
    assert both[:2] == german
    assert [row["map"] for row in saved_scores.shown(run_of(out))["rows"]] == [row["map"] for row in both]

    def again(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr(module, "_score", again)
    assert evaluate(EvalConfig(), dataset, folder, out).rows == whole
    assert evaluate(EvalConfig(bits=(8,), langs=("en",), map_at=5), dataset, folder, out).rows == top
    for changed in (
        EvalConfig(ties="optimistic"),
        EvalConfig(map_at=6),
        EvalConfig(at=(2,)),
        EvalConfig(map_at=5, map_at_rule="R"),
    ):
        with pytest.raises(AssertionError, match="again"):
            evaluate(replace(changed, bits=(8,)), dataset, folder, out)
    metrics.write_bytes(metrics.read_bytes().replace(b'"map": 0', b'"map": 1', 1))
    with pytest.raises(AssertionError, match="again"):  # nobody's figures but our own
        evaluate(EvalConfig(bits=(8,)), dataset, folder, out)


def test_the_protocol_says_what_differs_between_the_runs(mine):
    dataset, folder, out = mine
    shutil.copy(folder / "text-de-toy.h5", folder / "text-de-twin.h5")
    other = replace(QUICK, bits=16, epochs=3, batch=8)
    train(other, dataset, folder, out, ("de=twin", "en=toy"))
    result = evaluate(EvalConfig(), dataset, folder, out)
    de, en = (result.protocol["encoders"][f"text-{lang}"] for lang in ("de", "en"))
    assert re.fullmatch(r"toy .* \(triplet-8, triplet-13\); twin .* \(triplet-16\)", de)
    assert "triplet" not in en
    assert {row["encoders"]["text-de"] for row in result.rows if row["bits"] == 16} == {"twin"}
    settings = result.protocol["settings other than the default"]
    assert "triplet-16: epochs 3, batch 8, lr 0.01" in settings
    assert "triplet-8: epochs 4, batch 16, lr 0.01" in settings


def test_an_epoch_that_no_val_items_chose_is_not_said_to_be_chosen(make_cache, tmp_path):
    made = make_cache(
        tmp_path / "cache", change=lambda i: replace(i, splits=i.splits - {"val"} or frozenset({"train"}))
    )
    train(replace(QUICK, epochs=1), *made, tmp_path / "runs")
    protocol = evaluate(EvalConfig(), *made, tmp_path / "runs").protocol
    assert protocol["epoch"] == "last epoch (no val items)"


def test_runs_of_the_past_are_left_out_and_named(mine, make_cache):
    _, folder, out = mine
    dataset, _ = make_cache(folder.parent, change=lambda i: replace(i, labels=i.labels[:1]))
    train(QUICK, dataset, folder, out, overwrite=True)
    result = evaluate(EvalConfig(), dataset, folder, out)
    assert {row["bits"] for row in result.rows} == {8}
    assert result.protocol["left out"].startswith("triplet-13: trained on other items")
    with pytest.raises(StaleError, match="other items.*prune"):
        evaluate(EvalConfig(bits=(13,)), dataset, folder, out)


def test_the_best_run_is_one_of_most_languages(mine):
    dataset, folder, out = mine
    run, _ = train(replace(QUICK, langs=("en",)), dataset, folder, out)
    sure = runs.Run(run.folder, {**run.config, "val_map_mean": 1.0})
    found = runs.find_runs(out, "toy", "labels")
    assert runs.best_run([sure, *found]).langs == ("de", "en")
    assert runs.best_run([sure, run]) == sure


def test_scores_of_other_codes_are_forgotten(mine):
    dataset, folder, out = mine
    evaluate(EvalConfig(bits=(8,), map_at=3), dataset, folder, out)
    run, _ = train(replace(QUICK, epochs=1), dataset, folder, out, overwrite=True)
    assert saved_scores.shown(run) is None
    rows = evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows
    stored = json.loads((run.folder / runs.METRICS).read_text())["scores"]
    assert [[row["map"] for row in entry["rows"]] for entry in stored] == [[row["map"] for row in rows]]


def test_a_run_that_moved_is_named_where_it_is(mine):
    dataset, folder, out = mine
    evaluate(EvalConfig(), dataset, folder, out)
    moved = out.rename(out.with_name("elsewhere"))
    rows = evaluate(EvalConfig(bits=(8,)), dataset, folder, moved).rows
    assert {row["run"] for row in rows} == {str(moved / "toy" / "triplet-8")}


def test_filters_choose_bits_languages_and_methods(mine):
    dataset, folder, out = mine
    train(replace(QUICK, method="triplet-seed", epochs=1, langs=("en",)), dataset, folder, out)

    def found(**filters):
        rows = evaluate(EvalConfig(**filters), dataset, folder, out).rows
        return {(r["method"], r["bits"], r["lang"]) for r in rows}

    assert found(bits=(13,)) == {("triplet", 13, "de"), ("triplet", 13, "en")}
    assert found(langs=("de",)) == {("triplet", 8, "de"), ("triplet", 13, "de"), ("triplet-seed", 8, "de")}
    assert found(methods=("triplet-seed",)) == {("triplet-seed", 8, "de"), ("triplet-seed", 8, "en")}
    assert len(found()) == 6
    for filters in ({"bits": (64,)}, {"langs": ("fr",)}, {"methods": ("cca",)}):
        with pytest.raises(UsageError):
            found(**filters)


@pytest.mark.parametrize(
    "config",
    [
        EvalConfig(ties="lucky"),
        EvalConfig(map_at_rule="r"),
        EvalConfig(map_at=0),
        EvalConfig(at=(0,)),
        EvalConfig(directions=("t2v",)),
        EvalConfig(relevance="pair"),
        EvalConfig(relevance="pairs", directions=("i2i",)),
    ],
)
def test_what_is_no_option_is_refused(scored, config):
    base, dataset, folder, _ = scored
    with pytest.raises(UsageError):
        evaluate(config, dataset, folder, base / "runs")


# ---------------------------------------------------------------------------------------------- codes and their files


def test_codes_are_made_once(mine):
    dataset, folder, out = mine
    run = run_of(out)
    made = [run.folder / runs.CODES, *run.folder.glob("*.faiss")]
    assert len(made) == 4
    before = {path: path.stat().st_mtime_ns for path in made}
    evaluate(EvalConfig(), dataset, folder, out)
    assert before == {path: path.stat().st_mtime_ns for path in made}


def test_codes_are_made_again_for_other_heads(mine):
    dataset, folder, out = mine
    run, _ = train(replace(QUICK, epochs=1), dataset, folder, out, overwrite=True)
    row = evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows[0]
    slow = rankings(run, dataset, folder, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


def test_codes_of_other_features_are_never_scored(mine, make_cache):
    dataset, folder, out = mine
    make_cache(folder.parent, shift="query")
    (run_of(out).folder / runs.CODES).unlink()
    with pytest.raises(StaleError, match="train again"):
        evaluate(EvalConfig(bits=(8,)), dataset, folder, out)
    run, _ = train(QUICK, dataset, folder, out, overwrite=True)
    row = evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows[0]
    slow = rankings(run, dataset, folder, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


@pytest.mark.parametrize("name", [runs.CODES, "image.faiss", "text-de.faiss"])
def test_a_deleted_file_is_made_again_to_the_same_bytes(mine, scored, name):
    dataset, folder, out = mine
    path = run_of(out).folder / name
    before = path.read_bytes()
    path.unlink()
    rows = evaluate(EvalConfig(bits=(8,)), dataset, folder, out).rows
    assert path.read_bytes() == before
    assert [r["map"] for r in rows] == [r["map"] for r in scored[3].rows if r["bits"] == 8]


def test_damaged_heads_make_no_codes(mine):
    dataset, folder, out = mine
    folder_of_run = run_of(out).folder
    (folder_of_run / runs.CODES).unlink()
    (folder_of_run / runs.HEADS).write_bytes((folder_of_run / runs.HEADS).read_bytes()[:-1])
    with pytest.raises(DamagedError, match=runs.HEADS):
        evaluate(EvalConfig(bits=(8,)), dataset, folder, out)
    assert not (folder_of_run / runs.CODES).exists()


def test_a_run_of_other_items_is_refused(mine, make_cache):
    _, folder, out = mine
    dataset, _ = make_cache(folder.parent, change=lambda i: replace(i, labels=i.labels[:1]))
    with pytest.raises(StaleError, match="other items"):
        evaluate(EvalConfig(), dataset, folder, out)


# ---------------------------------------------------------------------------------------------- other judges


def test_trec_files_are_judged_alike(mine, tmp_path):
    ir_measures = pytest.importorskip("ir_measures")
    dataset, _, out = mine
    written = write_trec(EvalConfig(bits=(8,)), dataset, out, tmp_path / "trec")
    assert len(written) == 8
    views = read_codes(run_of(out))
    for lang in ("de", "en"):
        for direction in ("i2t", "t2i"):
            stem = str(tmp_path / "trec" / f"triplet-8.{lang}.{direction}")
            ranked = ir_measures.read_trec_run(stem + ".run")
            judged = ir_measures.read_trec_qrels(stem + ".qrels")
            theirs = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.AP], judged, ranked)}
            ends = ("image", f"text-{lang}")[:: 1 if direction == "i2t" else -1]
            both = sides(dataset, views, Search(direction, *ends))
            _, order = both.sought.index.search(both.source.codes.packed[both.rows], len(both.database))
            queries = both.queries
            hits = np.array(
                [[related(dataset, q, both.database[d]) for d in row] for q, row in zip(queries, order, strict=True)]
            )
            ours = average_precision_ranked(hits)
            assert theirs == pytest.approx({f"i{q}": ap for q, ap in zip(queries, ours, strict=True)}, abs=1e-9)
            assert math.isfinite(sum(theirs.values()))


def test_trec_files_can_be_asked_for_before_any_codes_exist(mine, tmp_path):
    dataset, folder, out = mine
    evaluate(EvalConfig(langs=("de",)), dataset, folder, out)
    assert len(write_trec(EvalConfig(langs=("de",)), dataset, out, tmp_path / "trec")) == 2 * 2 * 2


def test_trec_files_number_captions_and_leave_the_query_itself_out(paired, tmp_path):
    out, dataset, folder, run = paired
    config = EvalConfig(relevance="pairs", langs=("de",), directions=("t2i", "t2t"))
    evaluate(config, dataset, folder, out)
    names = [path.name for path in write_trec(config, dataset, out, tmp_path)]
    stems = [f"{run.folder.name}.de.t2i", f"{run.folder.name}.de-de.t2t"]
    assert names == [stem + end for stem in stems for end in (".run", ".qrels")]
    captions = [f"i{n}#{c}" for n in range(0, 120, 6) for c in (0, 1)]
    images, texts = ([line.split() for line in (tmp_path / (stem + ".run")).read_text().splitlines()] for stem in stems)
    assert {line[0] for line in images} == {line[0] for line in texts} == set(captions)
    assert {line[2] for line in images} == {f"i{n}" for n in range(0, 120, 6)}
    assert sorted(line[2] for line in texts if line[0] == "i6#1") == sorted(set(captions) - {"i6#1"})
    judged = [line.split() for line in (tmp_path / (stems[1] + ".qrels")).read_text().splitlines()]
    assert ["i6#1", "0", "i6#0", "1"] in judged
    assert len(judged) == len(captions)
