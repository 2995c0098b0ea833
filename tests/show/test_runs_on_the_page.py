"""While encoders load the page says so, and other runs of the data set can be chosen."""

import threading

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from serving import QUICK, Seen, form, photo

from cmrhash.config import TrainConfig
from cmrhash.data.view import View
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train


def test_while_encoders_load_only_what_needs_them_waits(hasher, serve, made):
    loaded = threading.Event()
    with serve(hasher) as client:
        client.state.warming = client.state.encoding.submit(loaded.wait)
        waiting = client.get("/?q=dog&lang=en")
        assert waiting.status_code == 200
        assert Seen(waiting.text).all("meta", **{"http-equiv": "refresh", "content": "1"})
        assert "Getting ready" in waiting.text
        assert "Result </span>" not in waiting.text
        for path in ("/", "/?id=i3", "/item/i3", "/scores", "/thumb/i3", "/healthz"):
            shown = client.get(path)
            assert (shown.status_code, "Getting ready" in shown.text) == (200, False)
        loaded.set()
        client.state.warming.result()
        assert "Result </span>" in client.get("/?q=dog&lang=en").text


@pytest.fixture
def several(make_cache, tmp_path):
    """A folder of runs of one data set, one of them damaged, and the hasher of the first."""
    data = make_cache(tmp_path / "cache")
    runs = [train(TrainConfig(**(QUICK | {"bits": bits})), data, tmp_path / "runs")[0] for bits in (8, 12, 16, 24)]
    (runs[3].folder / "config.json").write_text("{")
    return Hasher.open(runs[0], data)


def test_runs_of_the_data_set_can_be_switched(several, serve):
    names = ["triplet-12", "triplet-16", "triplet-8"]
    with serve(several, max_runs=2) as client:
        shown = Seen(client.get("/?id=i6&k=5").text)
        assert [option["value"] for option in shown.all("option") if "triplet" in option["value"]] == names
        for name in names:
            other = client.get(f"/?id=i6&k=5&run={name}")
            seen = Seen(other.text)
            assert (other.status_code, seen.all("option", value=name, selected=None) != []) == (200, True)
            own = [a["href"] for a in seen.all("a", **{"class": "open"})]
            assert all((f"run={name}" in link) == (name != "triplet-8") for link in own)
            assert len(client.state.collection._open) <= 1  # beside the first one
            assert f"Scores and plots: {name}" in client.get(f"/scores?run={name}").text
        unknown = client.get("/?id=i6&run=nope")
        assert unknown.status_code == 404
        assert "There is no run &#x27;nope&#x27; of this data set" in unknown.text
        assert "Choose one of triplet-12, triplet-16, triplet-8." in unknown.text
        for odd in ("../../etc", "/etc", "triplet-24"):
            assert client.get("/", params={"id": "i6", "run": odd}).status_code == 404


def test_another_run_finds_by_its_own_codes_with_the_same_encoders(made, tmp_path, serve):
    data = ExtractedDataset.open(made / "cache")
    runs = [train(TrainConfig(**(QUICK | {"bits": bits})), data, tmp_path)[0] for bits in (8, 24)]
    hasher = Hasher.open(runs[0], data, device="cpu")
    with serve(hasher) as client:
        hasher.encode_text(["dog"], "en")
        hasher.encode_image([photo(made, 3)])
        other = client.state.collection.of("triplet-24").hasher
        assert other.bits == 24
        assert other.image_encoder is hasher.image_encoder
        assert other.text_encoder(View.text("en")) is hasher.text_encoder(View.text("en"))
        found = Seen(client.get("/?q=dog&lang=en&k=5&run=triplet-24").text)
        assert [img["alt"] for img in found.all("img") if "/thumb/" in img["src"]] == [
            hit.caption for hit in other.search("dog", lang="en", k=5)
        ]


def test_a_run_stays_chosen_when_a_photo_is_sent(hasher, made, client):
    own = hasher.run.folder.name
    assert "run=" not in client.post("/", **form(photo(made, 3), run=own)).headers["location"]
    assert client.post("/", **form(photo(made, 3), run="other")).headers["location"].endswith("&run=other")
