"""Who is who among several processes, by the environment; what they do together is in test_finetune_ranks.py."""

import pytest
import torch

from cmrhash.compute import processes
from cmrhash.errors import UsageError


def test_alone_nothing_happens(started):
    started(None, None)
    assert (processes.rank(), processes.world(), processes.part(7), processes.counts(7)) == (0, 1, slice(0, 7), [7])
    x = torch.ones(3)
    with processes.group(torch.device("cpu")), processes.first():
        assert processes.gather(x, [3]) is x
        assert processes.total(x) is processes.spread(x) is x
        processes.agree("data set", b"")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_parts_follow_each_other_and_are_as_large_as_the_others(started, length, world):
    started(world - 1, world)
    parts = [range(length)[processes.part(length, of)] for of in range(world)]
    assert [i for own in parts for i in own] == list(range(length))
    assert processes.counts(length) == [len(own) for own in parts]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert processes.part(length) == processes.part(length, world - 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"MASTER_ADDR": None},
            "WORLD_SIZE is 2, but MASTER_ADDR is not set: start all of them with torchrun, or unset",
        ),
        ({"RANK": None}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"RANK": 2}, "RANK is 2, but there are only 2 processes"),
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'"),
        ({"RANK": "-1"}, "the environment variable RANK is '-1'"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(started, changes, words):
    started(0, 2, **changes)
    with pytest.raises(UsageError, match=words):
        processes.rank()


def test_each_process_takes_a_gpu_of_its_own(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    started(None, None)
    assert processes.device_of("auto") == torch.device("cuda")
    started(3, 4, LOCAL_RANK=1)
    assert processes.device_of("auto") == torch.device("cuda:1")
    assert processes.device_of("cpu") == torch.device("cpu")
    started(3, 4, LOCAL_RANK=2)
    with pytest.raises(UsageError, match="no GPU for process 2 of this machine, which has 2 GPUs: start one"):
        processes.device_of("auto")
    monkeypatch.setattr("cmrhash.compute.device.choose_device", torch.device)
    with pytest.raises(UsageError, match="^device: cuda:1 cannot serve 4 processes: leave it out"):
        processes.device_of("cuda:1")
