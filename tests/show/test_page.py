"""The page and its API show what the Hasher finds, for every reader and in every colour scheme."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

import numpy as np
from PIL import Image
from serving import QUICK, Seen, form, photo, upload

from cmrhash.config import EvalConfig, ExtractConfig, ServeConfig, TrainConfig
from cmrhash.evaluation.evaluate import score
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.show import plots
from cmrhash.show.answers import Question, ask
from cmrhash.show.html.document import SVG_POLICY
from cmrhash.show.html.results import about
from cmrhash.show.html.tiles import likeness, shape
from cmrhash.show.server.pictures import Pictures
from cmrhash.show.server.server import warm
from cmrhash.training.runs import METRICS
from cmrhash.training.train import train


def as_json(hits):
    return [{**hit.as_json(), "labels": list(hit.labels)} for hit in hits]


def shown_ids(seen):
    addresses = [img["src"].partition("?")[0] for img in seen.all("img")]
    return [address.removeprefix("/thumb/") for address in addresses if address.startswith("/thumb/")]


def without(results):
    return [{key: value for key, value in result.items() if key not in ("relevant", "itself")} for result in results]


def test_the_api_finds_what_the_hasher_finds(client, hasher, made):
    asked = client.get("/api/search", params={"q": "dog 4", "lang": "en", "k": 5}).json()
    assert without(asked["results"]) == as_json(hasher.search("dog 4", lang="en", k=5))
    assert asked["query"] == "dog 4"
    assert {result["relevant"] for result in asked["results"]} == {None}
    found = client.post("/api/search", **upload(photo(made, 3), lang="de", to="both", k="7")).json()
    assert without(found["results"]) == as_json(hasher.search(photo(made, 3), lang="de", to="both", k=7))
    found = client.get("/api/search", params={"id": "i3", "by": "text", "lang": "en"}).json()
    assert without(found["results"]) == as_json(hasher.search_item("i3", by="text", lang="en", k=ServeConfig.k))


def test_by_an_item_the_api_says_what_is_relevant(client, hasher):
    results = client.get("/api/search", params={"id": "i3", "k": 30}).json()["results"]
    assert [r["relevant"] for r in results] == [r["labels"] == ["house"] for r in results]
    assert len({r["relevant"] for r in results}) == 2
    assert [r["itself"] for r in results] == [r["id"] == "i3" for r in results]


def test_by_pairs_only_the_item_itself_is_relevant(make_cache, tmp_path, serve):
    data = make_cache(tmp_path / "cache")
    run, _ = train(TrainConfig(**QUICK, relevance="pairs"), data, tmp_path / "runs")
    hasher = Hasher.open(run, data)
    hits = ask(hasher, Question(ident="i6", k=40)).parts["text"]
    assert len(hits) == 40
    assert all(judged.relevant is (True if judged.hit.id == "i6" else None) for judged in hits)
    with serve(hasher) as client:
        shown = client.get("/?id=i6&k=40").text
        assert "relevant" not in shown.replace("relevant: ", "")  # no verdict on anything else
        parts = ask(hasher, Question(ident="i6", k=40), apart=True).parts
        for kind, words in (("image", "the query"), ("text", "its own caption")):
            assert shown.count(f">{words}<") == sum(judged.itself for judged in parts[kind])


@pytest.mark.parametrize(("q", "lang"), [("dog 4", "en"), ("Katze 5", "de")])
def test_the_page_shows_photos_with_rank_similarity_and_caption(client, hasher, q, lang):
    shown = client.get("/", params={"q": q, "k": 4})
    assert ">4 of 40 photos<span" in shown.text
    assert shown.status_code == 200
    hits = hasher.search(q, k=4)
    seen = Seen(shown.text)
    pictures = [img for img in seen.all("img") if img["src"].startswith("/thumb/")]
    assert [p["alt"] for p in pictures] == [hit.caption for hit in hits]
    assert [p["src"].partition("?")[0] for p in pictures] == [f"/thumb/{hit.id}" for hit in hits]
    assert [float(m["value"]) for m in seen.all("meter")] == [round(likeness(hit), 3) for hit in hits]
    assert re.findall(r"Result </span>(\d+)<", shown.text) == ["1", "2", "3", "4"]
    assert "distance" not in shown.text
    assert [a["lang"] for a in seen.all("a", **{"class": "chip", "aria-current": "true"})] == [lang]
    assert f'value="{q}"' in shown.text
    assert seen.all("a", **{"class": "open"})[0]["href"].startswith(f"/item/{hits[0].id}?q=")


def test_the_bar_is_empty_for_what_is_no_nearer_than_chance(hasher):
    hit = hasher.search("dog 4", lang="en", k=1)[0]
    assert [likeness(replace(hit, score=score)) for score in (1.0, 0.75, 0.0, -1.0)] == [1.0, 0.75, 0.0, 0.0]


def test_tiles_have_the_shape_of_their_photos(client):
    rules = client.get("/page.css").text
    assert [shape(size) for size in ((300, 300), (400, 300), (200, 300), (10, 9000), (9000, 10), None)] == [
        *("w20", "w27", "w13", "w8", "w60", "w27")
    ]
    for ratio, name in ((1, "w20"), (1.35, "w27"), (0.4, "w8"), (3, "w60")):
        assert f".{name} .frame {{ aspect-ratio: {ratio}; }}" in rules
    assert "object-fit: cover" in rules
    tile = Seen(client.get("/?q=dog+4&lang=en&k=1").text).all("li")[0]
    assert tile["class"].split()[0] == "tile"
    assert f".{tile['class'].split()[1]} {{ flex:" in rules


def test_a_photo_has_an_address_that_stays_and_can_be_passed_on(client, hasher, made):
    sent = client.post("/", **form(photo(made, 3), k="5", lang=""))
    assert sent.status_code == 303
    address = sent.headers["location"]
    assert re.fullmatch(r"/\?photo=[0-9a-f]{32}&k=5", address)
    shown = client.get(address, headers={"accept-language": "fr, en-GB;q=0.8, de"})
    again = client.get(address, headers={"accept-language": "fr, en-GB;q=0.8, de"})
    untimed = [re.sub(r"in [\d.]+ s", "", page.text) for page in (shown, again)]
    assert untimed[0] == untimed[1]
    seen = Seen(shown.text)
    assert [a["id"] for a in seen.all("h2")] == ["found-image", "found-text"]
    captions = [hit.caption for hit in hasher.search(photo(made, 3), lang="en", k=5)]
    assert captions[0] in shown.text  # in the browser's first language that the run has
    assert not seen.all("option", selected=None, value="both")  # what was not chosen does not stay
    thumb = client.get(seen.all("img", alt="Your photo")[0]["src"])
    assert (thumb.status_code, thumb.headers["content-type"]) == (200, "image/jpeg")


def test_the_language_switch_keeps_the_photo(client, hasher, made):
    address = client.post("/", **form(photo(made, 3))).headers["location"]
    for lang in ("de", "en"):
        seen = Seen(client.get(address).text)
        switch = next(a["href"] for a in seen.all("a", **{"class": "chip"}) if a.get("lang") == lang)
        assert address.removeprefix("/?") in switch
        assert hasher.search(photo(made, 3), lang=lang, k=5)[0].caption in client.get(switch).text


def test_words_and_a_photo_are_searched_together(client, hasher, made):
    both = client.post("/", **form(photo(made, 3), q="dog 4", lang="en")).headers["location"]
    shown = client.get(both)
    assert "“dog 4” and your photo" in shown.text
    assert 'value="dog 4"' in shown.text
    question = Question(text="dog 4", photo=photo(made, 3), lang="en", k=40)
    found = [judged.hit for judged in ask(hasher, question).parts["image"]]
    both = hasher.blend("dog 4", photo(made, 3), lang="en")
    assert found == hasher.nearest(both, "image", "en", 40)
    assert found != hasher.search("dog 4", lang="en", k=40)
    without = [a["href"] for a in Seen(shown.text).all("a", title="Remove: Your photo")]
    assert without == ["/?q=dog+4&lang=en"]


def test_less_like_this_moves_away_from_it(client, hasher):
    liked = ask(hasher, Question(ident="i3", k=32, to="image")).parts["image"]
    other = next(judged.hit for judged in liked if judged.hit.id != "i3")
    unlike = ask(hasher, Question(ident="i3", unlike=(other.id,), k=32, to="image")).parts["image"]
    assert next(judged.hit.score for judged in unlike if judged.hit.id == other.id) < other.score
    shown = client.get(f"/?id=i3&unlike={other.id}")
    assert f"less like {other.id} ×" in shown.text
    assert client.get("/?id=i3&unlike=nope").status_code == 404


def test_labels_filter_the_results(client, hasher):
    address = "/?q=dog+4&lang=en&k=6"
    chips = [a["href"] for a in Seen(client.get(address).text).all("a", **{"class": "chip"}) if "label=" in a["href"]]
    label = chips[0].partition("label=")[2]
    shown = Seen(client.get(chips[0]).text)
    ids = shown_ids(shown)
    every = [hit for hit in hasher.search("dog 4", lang="en", k=40) if label in hit.labels]
    assert ids == [hit.id for hit in every[:6]]
    chosen = [a["href"] for a in shown.all("a", **{"aria-current": "true"})]
    assert "/?q=dog+4&lang=en&k=6" in chosen  # which takes the filter away
    nothing = client.get(f"{address}&label=none")
    assert "Remove a filter" in nothing.text


def test_further_results_follow_without_a_gap(client, hasher):
    address, ids = "/?q=dog+4&lang=en&k=10", []
    for page in range(4):
        seen = Seen(client.get(address).text)
        ids += [
            img["src"].partition("?")[0].removeprefix("/thumb/") for img in seen.all("img") if "thumb" in img["src"]
        ]
        further = seen.all("a", **{"data-list": "list-image"})
        assert bool(further) == (page < 3)
        address = further[0]["href"] if further else ""
    assert ids == [hit.id for hit in hasher.search("dog 4", lang="en", k=40)]
    beyond = client.get("/?q=dog+4&lang=en&skip=2001")
    assert (beyond.status_code, "at most 2000 are shown" in beyond.text) == (400, True)


def test_the_page_of_an_item_has_all_captions_and_the_original_photo(client, hasher, made):
    shown = client.get("/item/i3?q=dog+4&lang=en")
    seen = Seen(shown.text)
    item = hasher.item("i3")
    for texts in item.texts.values():
        for text in texts:
            assert text in seen.words
    links = {a["href"] for a in seen.all("a")}
    assert {"/?q=dog+4&lang=en", "/?id=i3&lang=en", "/?q=dog+4&lang=en&unlike=i3", "/item/i3"} <= links
    original = client.get(seen.all("img", alt=item.texts["en"][0])[0]["src"])
    assert original.content == photo(made, 3)
    assert original.headers["content-type"] == "image/jpeg"
    assert "sandbox" in original.headers["content-security-policy"]
    assert "Less like this" not in client.get("/item/i3").text  # than what?
    assert client.get("/item/nope", headers={"accept": "text/html"}).status_code == 404


def test_the_first_page_offers_query_items(client, hasher):
    shown = client.get("/").text
    queries = [item.id for item in hasher.dataset.items if "query" in item.splits]
    offered = re.findall(r'href="/\?id=(i\d+)&amp;lang=', shown)
    assert offered == queries  # there are eight
    sentences = [a["href"] for a in Seen(shown).all("a", **{"class": "chip"})]
    assert client.get(sentences[0]).status_code == 200


def test_ready_made_features_are_searched_by_items(tmp_path, serve):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((60, 8)), "text": rng.standard_normal((60, 6))}
    labels = np.eye(3, dtype=np.int64)[rng.integers(0, 3, 60)]
    np.savez(tmp_path / "own.npz", labels=labels, **{name: x.astype(np.float32) for name, x in arrays.items()})
    extract(ExtractConfig(dataset="features", features=(tmp_path / "own.npz",), cache=tmp_path / "cache"))
    run, _ = train(TrainConfig(**QUICK), ExtractedDataset.open(tmp_path / "cache"), tmp_path / "runs")
    hasher = Hasher.load(run.folder, tmp_path / "cache")
    assert {"ready-made" in problem for problem in warm(hasher)} == {True}
    with serve(hasher) as client:
        first = Seen(client.get("/").text)
        shown = client.get(next(a["href"] for a in first.all("a") if "id=" in a["href"]))
        assert "Shares with the query: " in shown.text
        assert "no photo" in client.get(f"/item/{hasher.dataset.items[0].id}").text
        assert client.get("/?q=dog").status_code == 400


def test_people_find_their_way_without_eyes_or_mouse(client):
    for address in ("/", "/?q=dog+4&lang=en", "/item/i3", "/scores", "/?q=dog&lang=fr"):
        shown = client.get(address).text
        seen = Seen(shown)
        tags = {tag for tag, _ in seen.elements}
        assert {"main", "h1"} <= tags
        assert seen.all("html", lang="en")
        assert seen.all("main", id="results")
        assert all("alt" in picture for picture in seen.all("img"))
        named = {label["for"] for label in seen.all("label") if "for" in label}
        for tag in ("input", "select"):
            for field in seen.all(tag):
                inside = re.search(rf'<label>[^<]*<{tag}[^>]*name="{field["name"]}"', shown)
                assert field.get("type") == "hidden" or field.get("id") in named or inside, field
    seen = Seen(client.get("/?q=dog+4&lang=en").text)
    assert {"header", "search", "footer", "details", "dialog"} <= {tag for tag, _ in seen.elements}
    assert seen.all("a", **{"class": "skip", "href": "#results"})
    assert seen.all("p", role="status", **{"aria-live": "polite"})
    assert all(meter["aria-label"] for meter in seen.all("meter"))
    style = client.get("/style.css").text + client.get("/page.css").text
    assert "prefers-color-scheme: dark" in style
    assert "prefers-reduced-motion" in style
    assert ":focus-visible" in style


def test_nothing_is_loaded_from_elsewhere(client):
    scripts = ("/search.js", "/more.js", "/lightbox.js")
    for path in ("/", "/?q=dog&lang=en", "/item/i3", "/scores", "/style.css", "/page.css", *scripts, "/favicon.svg"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)^// .*$", "", text).replace("://127.0.0.1", ""), path


def test_scores_are_shown_once_eval_was_run(make_cache, tmp_path, serve):
    data = make_cache(tmp_path / "cache")
    for relevance, column in (("labels", "mAP"), ("pairs", "R@10")):
        run, _ = train(TrainConfig(**QUICK, relevance=relevance), data, tmp_path / "runs")
        hasher = Hasher.open(run, data)
        with serve(hasher) as client:
            assert "No scores yet" in client.get("/scores").text
            result = score(EvalConfig(relevance=relevance), [run], hasher.data)
            shown = client.get("/scores").text
            assert f'<th scope="col" class=n>{column}</th>' in shown
            figure = result.rows[0]["map"] if relevance == "labels" else result.rows[0]["hit_at"]["10"]
            assert f"<td class=n>{figure:.3f}</td>" in shown
            for broken in (b"", b"[]", b'{"rows": [{}], "protocol": {}}', b"\xff"):
                (run.folder / METRICS).write_bytes(broken)
                assert "No scores yet" in client.get("/scores").text


@pytest.mark.slow
def test_plots_are_drawn_once_asked_for_in_the_colours_of_the_page(client, hasher, monkeypatch):
    pytest.importorskip("matplotlib")
    shown = Seen(client.get("/scores").text)
    addresses = [img["src"] for img in shown.all("img") if img["src"].startswith("/plot/")]
    names = [f"{kind}-{lang}" for kind in ("pr", "pr-rank", "topn") for lang in ("de", "en")]
    names += ["bits", "seen", "distances", "tsne-de", "tsne-en", "training"]
    assert addresses == [f"/plot/{name}.svg" for name in names]
    assert all(img["loading"] == "lazy" for img in shown.all("img") if img["src"] in addresses)
    drawn = {}
    for address in addresses:
        answer = client.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
        assert answer.headers.get_list("content-security-policy") == [SVG_POLICY]
        root = ElementTree.fromstring(answer.text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in root[0].text
        assert "var(--plot-ink, #222222)" in answer.text or "var(--plot-muted, #595959)" in answer.text
        drawn[address] = answer.content
    assert len(set(drawn.values())) == len(drawn)
    monkeypatch.setattr("cmrhash.show.figures.KINDS", {})
    assert {address: client.get(address).content for address in addresses} == drawn


def test_a_plot_that_cannot_be_drawn_is_words(hasher, monkeypatch):
    pytest.importorskip("matplotlib")
    said, words = [], plots.words
    monkeypatch.setattr(plots, "words", lambda text: words(said.append(text) or text))
    assert b"<svg" in Pictures(hasher).svg("bits")
    assert said[0].startswith("not available: plot bits needs two code lengths")
    monkeypatch.setattr("cmrhash.show.tsne.FEWEST", 10**6)
    pictures = Pictures(hasher)
    assert all(b"<svg" in pictures.svg(f"tsne-{lang}") for lang in ("en", "de"))
    assert said[1:] == ["not available: plot tsne needs 1000000 query items with image and text, found 8"]


def test_an_unknown_plot_is_named(client):
    answer = client.get("/plot/nothing.svg")
    assert (answer.status_code, "pr-en" in answer.json()["error"]) == (404, True)


def test_the_run_and_its_protocol_are_named(hasher):
    assert about(hasher).startswith("manifest: triplet, 16 bits, seed 0, trained on de and en; all 40 items")
    assert about(hasher).endswith("UNTRAINED ENCODERS")


def test_the_whole_collection_is_served_where_it_is_asked_for(made, serve):
    hasher = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu", among="all")
    with serve(hasher, among="all") as client:
        assert "; all 40 items; " in client.get("/").text
        asked = {"id": "i5", "lang": "en", "k": 100}  # a query item
        found = client.get("/api/search", params=asked).json()["results"]
        assert len(found) == 40
        assert [r["id"] for r in found if r["itself"]] == ["i5"]


def test_machines_are_told_what_is_there(client, hasher):
    health = client.get("/healthz").json()
    assert (health["status"], health["items"]) == ("ok", 40)
    described = client.get("/openapi.json").json()
    photos = {"/photo/{ident}", "/plot/{name}.svg", "/thumb/{ident}"}
    assert set(described["paths"]) == {"/api/search", "/healthz", *photos}
    assert set(described["paths"]["/api/search"]) == {"get", "post"}
    for path in ("/docs", "/redoc"):  # these would be loaded from another host
        assert client.get(path).status_code == 404
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_a_thumbnail_is_drawn_anew(client, made):
    jpeg = client.get("/thumb/i3")
    assert jpeg.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(jpeg.content)) as small, Image.open(io.BytesIO(photo(made, 3))) as whole:
        assert (small.format, small.size) == ("JPEG", whole.size)
    assert jpeg.content != photo(made, 3)
    assert client.get("/thumb/nope").status_code == 404


def test_the_browser_s_language_is_that_of_the_captions_and_never_of_a_sentence(client, hasher):
    german = {"accept-language": "de"}
    for path in ("/", "/?id=i3", "/?id=i3&lang=de", "/item/i3", "/item/i3?id=i3"):
        seen = Seen(client.get(path, headers=german).text)
        assert seen.all("option", selected=None)[0]["value"] == ""  # the language of the next sentence
        assert hasher.item("i3").texts["de"][0] in seen.words or path != "/item/i3"
    shown = Seen(client.get("/?q=dog+4", headers=german).text)
    assert [a["lang"] for a in shown.all("a", **{"aria-current": "true"})] == ["en"]


def test_words_that_no_caption_has_are_doubted(client):
    doubted = "none of its words is in the captions (en)"
    assert doubted in client.get("/?q=xyzzy&lang=en").text
    assert "may not fit" not in client.get("/?q=dog&lang=en").text
    assert "may not fit" not in client.get("/?id=i3").text
