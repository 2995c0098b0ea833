"""Fine-tuning over two processes (gloo, on a CPU) comes to what one process comes to, and ends as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_worker as worker
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from cmrhash.errors import UsageError
from cmrhash.training import runs
from cmrhash.training.finetune import loop as finetune
from cmrhash_cli.main import app  # noqa: F401  its modules are in every process, as they would be

pytestmark = pytest.mark.slow

FOLDER = "shufflenet_v2_x0_5-random"


def start(place, port, world=2):
    """As torchrun does it, whose store of keys is there before them."""
    tests = Path(worker.__file__).parent
    paths = [str(tests), *sys.path]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    where |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    for rank in range(world):
        env = os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(paths)}
        with (place / f"log-{rank}").open("w") as log:
            yield subprocess.Popen([sys.executable, worker.__file__, str(place)], env=env, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of everything, after two processes did their part and one did the same alone."""
    place = tmp_path_factory.mktemp("ranks")
    with worker.precise():
        worker.prepare(place)
        with pytest.raises(KeyboardInterrupt):
            worker.tune(place, "one-two", worker.stop_at(worker.STEPS + 2, KeyboardInterrupt))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that nobody can take meanwhile
    processes = list(start(place, store.port))
    try:
        with worker.precise():
            worker.tune(place, "one")
        for process in processes:
            process.wait(timeout=300)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((place / f"log-{rank}").read_text() for rank in range(2))
    assert (place / "told-0.json").exists(), logs
    assert [process.returncode for process in processes] == [0, -9], logs
    return place


@pytest.fixture(scope="module")
def told(place):
    """What each of the two says of its scenarios."""
    return [json.loads((place / f"told-{rank}.json").read_text()) for rank in range(2)]


def tuned(place, cache):
    return place / cache / "manifest" / "tuned" / FOLDER


def history(place, cache):
    return [json.loads(line) for line in (tuned(place, cache) / runs.HISTORY).read_text().splitlines()]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            other[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same_encoders(place, cache):
    """As those that one process tuned without a break."""
    files = list(tuned(place, "one").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert_close(load_file(file), load_file(tuned(place, cache) / file.relative_to(tuned(place, "one"))), 1e-6)


# ---------------------------------------------------------------------------------------------- as one process


@pytest.mark.parametrize("kind", ["gradients", "trained"])
def test_losses_and_gradients_are_those_of_one_process(place, kind):
    with worker.precise():
        if kind == "gradients":
            alone = worker.gradients(place, "alone", worker.METHODS)
        else:  # BatchNorm with its own statistics, one text encoder for both languages
            alone = worker.gradients(place, "alone-trained", ["tie-ap"], text_models=(str(place / "bert"),))
    first, second = (load_file(place / f"{kind}-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert_close(alone, first, 1e-10)
    for method in {name.split("/")[0] for name in alone}:
        size = sum(t.abs().max() for name, t in alone.items() if name.startswith(f"{method}/image"))
        assert size > 1e-4, method


def test_the_whole_fine_tuning_is_that_of_one_process(place):
    assert_same_encoders(place, "two")
    one, two = history(place, "one"), history(place, "two")
    for a, b in zip(one, two, strict=True):
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-6)
        assert (b["val_map"], b["collapse"]) == (a["val_map"], a["collapse"])
    assert [line["processes"] for line in one + two] == [1, 1, 2, 2]


def test_both_extract_with_what_came_of_it_into_whole_files(place):
    for cache in ("one", "two"):
        assert len(list((place / cache / "manifest").glob("*-tuned.h5"))) == 3
    assert not list((place / "two").rglob("*.part"))


def test_ranks_draw_dropout_apart_and_the_rest_alike(started):
    drawn = {}
    for rank, world in [(0, 1), (0, 2), (1, 2)]:
        started(rank, world)
        with finetune.seeded(3, worker.CPU):
            order = torch.randperm(9, generator=finetune._draws(3)).tolist()
            drawn[rank, world] = (order, torch.rand(9).tolist())
    orders, masks = zip(*drawn.values(), strict=True)
    assert orders[0] == orders[1] == orders[2]
    assert masks[0] != masks[1] != masks[2] != masks[0]


# ---------------------------------------------------------------------------------------------- another number of them


@pytest.mark.faults("killed for real, training resumed")
def test_one_process_goes_on_with_what_two_began_until_one_was_killed(place, told):
    assert told[0]["killed"][0] == "PeerError"
    assert not (tuned(place, "killed") / runs.CONFIG).exists()
    with worker.precise():
        worker.tune(place, "killed")
    assert_same_encoders(place, "killed")
    assert [line["processes"] for line in history(place, "killed")] == [2, 1]


def test_two_processes_go_on_with_what_one_began(place):
    assert_same_encoders(place, "one-two")
    assert [line["processes"] for line in history(place, "one-two")] == [1, 2]


# ---------------------------------------------------------------------------------------------- one for all


def test_a_step_that_overflows_on_one_rank_is_left_out_by_both(place, told):
    assert [each["nan"] for each in told] == [1, 1]
    weights = load_file(tuned(place, "nan") / "image.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_processes_that_want_different_things_say_so(told):
    for each in told:
        kind, words, _ = each["disagreed"]
        assert kind == "PeerError"
        assert words.startswith("the 2 processes differ in their recipe and cache: start all with the same command")


def test_an_error_on_one_rank_ends_the_other(place, told):
    assert told[1]["failed"][:2] == ["DataError", "a photo is gone"]
    kind, words, seconds = told[0]["failed"]
    assert kind == "PeerError"
    assert words.startswith("another process of this run ended, or cannot be reached: see the message of that process")
    assert seconds < told[1]["failed"][2] + 60  # far from the 30 minutes that a hanging process is given
    assert (tuned(place, "failed") / "checkpoint.json").exists()


def test_ctrl_c_leaves_a_checkpoint(place, told):
    assert [each["stopped"][0] for each in told] == ["KeyboardInterrupt"] * 2
    assert (tuned(place, "stopped") / "checkpoint.json").exists()


def test_more_processes_than_items_a_step_are_refused(place, monkeypatch):
    init = finetune.Tuner.__init__

    def crowded(self, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finetune.processes, "world", lambda: 8)
            init(self, *args)

    monkeypatch.setattr(finetune.Tuner, "__init__", crowded)
    with (
        worker.precise(),
        pytest.raises(UsageError, match="4 items per step are too few for 8 processes: use `batch=8` or more"),
    ):
        worker.tune(place, "crowded")
