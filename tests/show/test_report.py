"""A report stands alone, says what is so, and takes every word of a data set for a word."""

import base64
import html
import io
import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from running import run as cmrhash
from serving import Seen
from trees import draw_photo

from cmrhash.config import CompareConfig, EvalConfig, ReportConfig, TrainConfig
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.evaluation.commands import command_of
from cmrhash.evaluation.compare import compare
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import stored_codes
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval import metrics
from cmrhash.search.hasher import Hasher
from cmrhash.show.examples import examples, ranked
from cmrhash.show.report import report
from cmrhash.show.sources import ShownRuns
from cmrhash.training import runs
from cmrhash.training.train import train

pytestmark = pytest.mark.slow

QUICK = TrainConfig(bits=8, epochs=2, batch=16, lr=0.02, hidden=16, device="cpu")
NASTY = '<script>alert("x")</script> & "so" on'


def nasty(item):
    """Markup wherever a data set can bring words of its own."""
    texts = {lang: tuple(f"{NASTY} {text}" for text in own) for lang, own in item.texts.items()}
    return replace(item, id=f"<b>{item.id}", texts=texts)


@pytest.fixture(scope="module")
def written(make_cache, tmp_path_factory):
    """(data set, runs, run, report, HTML) of a run over photos, one of them gone."""
    base = tmp_path_factory.mktemp("report")
    data = make_cache(base / "cache", change=nasty)
    for n in range(120):
        draw_photo(data.dataset.root / f"{n}.jpg", n, size=(300, 200))
    run, _ = train(QUICK, data, base / "runs")
    gone = examples(*opened(data, run), "de", 2, 5)["t2i"][0].results[0].hit.image
    (data.dataset.root / gone).unlink()
    made = report(ReportConfig(run=run.folder), data, base / "runs")
    return data, base / "runs", run, made, made.file.read_text(encoding="utf-8")


def opened(data, run):
    return ShownRuns(data, [run], (), 100), Hasher.open(run, data)


def ap_by_loops(data, run, lang, direction):
    """AP of each query that has one, as {id: ap}, by the slow way around: one query, one histogram."""
    views = stored_codes(run)
    ends = ("image", f"text-{lang}") if direction == "i2t" else (f"text-{lang}", "image")
    asking, lying = (views[end] for end in ends)
    found = {}
    for row in np.flatnonzero(np.diff(asking.codes.item, prepend=-1)):  # first captions
        query = data.dataset.items[asking.codes.item[row]]
        if "query" not in query.splits:
            continue
        items, relevant = np.zeros((1, 9), np.int64), np.zeros((1, 9), np.int64)
        for place in lying.database:
            distance = int(np.bitwise_count(asking.codes.packed[row] ^ lying.codes.packed[place]).sum())
            items[0, distance] += 1
            relevant[0, distance] += bool(set(query.labels) & set(data.dataset.items[lying.codes.item[place]].labels))
        found[query.id] = metrics.average_precision(items, relevant)[0]
    return found


# ---------------------------------------------------------------------------------------------- alone and safe


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(written):
    page = Seen(written[4])
    assert not re.search(r"\b(https?|ftp|file):|//\w", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", written[4]))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), attributes
    assert "@import" not in written[4]
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_words_of_the_data_set_are_escaped(written):
    assert "<script" not in written[4]
    assert "<b>i" not in written[4]
    assert html.escape(NASTY) in written[4]
    assert NASTY in "".join(Seen(written[4]).words)


def test_thumbnails_are_small_photos_and_the_one_that_is_gone_is_told(written):
    made, content = written[3:]
    photos = [attributes["src"] for tag, attributes in Seen(content).elements if tag == "img"]
    for uri in photos:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert (image.format, max(image.size)) == ("JPEG", 112)
    assert len(set(photos)) == made.photos > 10
    assert made.missing == 1
    assert f"1 of {made.photos + 1} photos are missing or unreadable" in content
    assert made.size == made.file.stat().st_size < 2e6


def test_the_same_run_gives_the_same_file(written, tmp_path):
    data, out, run = written[:3]
    again = report(ReportConfig(run=run.folder, out=tmp_path / "again.html"), data, out)
    assert again.file.read_text(encoding="utf-8") == written[4]


# ---------------------------------------------------------------------------------------------- what it says


def test_scores_and_protocol_are_those_of_eval(written):
    data, out, _, _, content = written
    result = evaluate(EvalConfig(), data, out)
    words = Seen(content).words
    for row in result.rows:
        at = next(i for i, w in enumerate(words) if words[i : i + 2] == [row["lang"], row["direction"]])
        assert words[at + 2] == f"{row['map']:.3f}"
    text = "".join(words)
    for line in result.in_words():
        assert line.partition(": ")[2] in text
    assert "Untrained encoders: image, text-de, text-en" in text
    assert content.count("<svg") == content.count("<figure>") == 2 + 2 + 2 + 1 + 2 + 1 + 1
    heads = [word for word in words if word in ("Results", "Examples", "Plots", "Protocol", "Reproduction")]
    assert heads == ["Results", "Examples", "Plots", "Protocol", "Reproduction"]
    assert content.count("t-SNE of the embeddings") == 0  # captions name the figures, which have no titles
    assert "plot bits needs two code lengths" in text


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_examples_are_truly_the_best_the_median_and_the_worst(written, direction):
    data, _, run = written[:3]
    shown = examples(*opened(data, run), "en", 2, 5)[direction]
    slow = ap_by_loops(data, run, "en", direction)
    values = sorted(slow.values(), reverse=True)
    assert len(values) == 20
    assert [e.rank for e in shown] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert [e.ap for e in shown] == pytest.approx(values[:2] + values[9:11] + values[-2:])
    for example in shown:
        assert slow[example.item.id] == pytest.approx(example.ap)
        assert (example.caption == example.item.texts["en"][0]) if direction == "t2i" else example.caption is None
        distances = [answer.hit.distance for answer in example.results]
        assert (len(distances), distances) == (5, sorted(distances))
        labels = {item.id: set(item.labels) for item in data.dataset.items}
        for answer in example.results:
            assert answer.relevant == bool(labels[example.item.id] & labels[answer.hit.id])
            assert answer.hit.modality == ("text" if direction == "i2t" else "image")


@pytest.mark.parametrize(
    ("ap", "count", "wanted"),
    [
        ([0.1, 0.9, 0.5], 1, [("best", 1), ("median", 2), ("worst", 0)]),
        ([0.1, float("nan"), 0.9, 0.5, 0.9], 1, [("best", 2), ("median", 4), ("worst", 0)]),
        ([0.3, 0.2], 2, [("best", 0), ("worst", 1)]),
        ([0.3], 2, [("best", 0)]),
        ([1.0] * 9, 2, [("best", 0), ("best", 1), ("median", 3), ("median", 4), ("worst", 7), ("worst", 8)]),
    ],
)
def test_ranks_of_few_queries_and_of_equal_ones(ap, count, wanted):
    assert ranked(np.array(ap), count) == wanted


def test_the_command_makes_the_run_again(written, tmp_path):
    data, _, run = written[:3]
    training, scoring = command_of(run, data).split(" && ")
    assert f"<pre>{html.escape(training)}" in written[4]
    where = ["--cache", data.folder.parent, "--runs", tmp_path]
    assert cmrhash(*shlex.split(training)[1:], *where, "--device", "cpu", "--quiet") == 0
    again = runs.open_run(tmp_path / "toy" / run.folder.name)
    assert again.files == run.files
    assert cmrhash(*shlex.split(scoring)[1:], *where) == 0


def test_the_command_names_language_relevance_and_a_chosen_encoder(written, tmp_path):
    folder = written[0].folder
    shutil.copytree(folder, tmp_path / "toy")
    shutil.copy(folder / "image-toy.h5", tmp_path / "toy" / "image-other.h5")
    data = ExtractedDataset.open(tmp_path)
    config = replace(QUICK, langs=("en",), relevance="pairs", seed=3)
    run, _ = train(config, data, tmp_path / "runs", ("image=toy",))
    assert command_of(run, data).startswith(
        "cmrhash train --dataset toy --method triplet --bits 8 --relevance pairs --epochs 2 --batch 16 --lr 0.02 "
        "--hidden 16 --lang en --encoder image=toy --seed 3 && "
    )
    made = report(ReportConfig(run=run.folder), data, tmp_path / "runs")
    assert "median rank" in made.file.read_text()


# ---------------------------------------------------------------------------------------------- a comparison


@pytest.fixture
def compared(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache")
    grid = CompareConfig(methods=("triplet", "cca"), bits=(8, 12), seeds=1)
    result = compare(grid, replace(QUICK, epochs=1), made, tmp_path / "runs")
    return made, tmp_path / "runs", result


def test_a_comparison_is_reported_as_its_table_with_the_commands_of_its_cells(compared, capsys):
    data, out, result = compared
    train(replace(QUICK, bits=4), data, out)  # not of the grid
    assert cmrhash("report", "--lang", "de", "--cache", data.folder.parent, "--runs", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    content = (out / "toy" / "report.html").read_text()
    assert told["file"] == str(out / "toy" / "report.html")
    assert (told["bytes"], len(told["runs"])) == (len(content.encode()), 4)
    words = Seen(content).words
    for row in result.rows:
        assert (f"{row['mean']:.3f}" in words) or row["lang"] == "en"
        assert html.escape(row["command"]) in content
    assert "en" not in words
    assert "the run with the best validation mAP" in content


def test_a_comparison_that_its_runs_no_longer_bear_out_is_refused(compared):
    data, out, _ = compared
    path = out / "toy" / "compare.json"
    fresh = path.read_text()
    about = json.loads(fresh)
    about["rows"][0]["mean"] += 0.01
    path.write_text(json.dumps(about))
    with pytest.raises(StaleError, match="its runs score .* now: .*run `compare` again"):
        report(ReportConfig(), data, out)
    path.write_text(fresh)
    shutil.rmtree(out / "toy" / "cca-12")
    with pytest.raises(StaleError, match="1 runs of the comparison are gone, cca with 12 bits"):
        report(ReportConfig(), data, out)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"rows": [3]}', b'{"rows": []}', b"\xff", b'{"rows": [{}]}'])
def test_what_is_no_comparison_is_refused_in_one_line(written, content, tmp_path):
    data = written[0]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "compare.json").write_bytes(content)
    with pytest.raises(DataError, match="not a comparison"):
        report(ReportConfig(), data, tmp_path)


def test_numbers_that_nothing_can_be_shown_by_and_missing_runs_are_refused(written, tmp_path):
    data, _, run = written[:3]
    for name in ("examples", "top", "thumbnail"):
        with pytest.raises(UsageError, match=f"^{name}: 0 is out of range"):
            report(ReportConfig(run=run.folder, **{name: 0}), data, tmp_path)
    with pytest.raises(UsageError, match="no such trained run"):
        report(ReportConfig(), data, tmp_path)
    with pytest.raises(UsageError, match="no trained run"):
        report(ReportConfig(run=tmp_path), data, tmp_path)
