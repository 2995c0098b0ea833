"""A trained collection that grows."""

from __future__ import annotations

import shutil

import pytest
from growing import COUNT
from running import EXTRACT, QUICK, run, write_own

from cmrhash.encoders import text as text_encoders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    base = tmp_path_factory.mktemp("grow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        patch.setattr(text_encoders, "TINY", tiny)
        write_own(base / "mine", COUNT, lambda e: [*e[:10], *({**more, "splits": ["database"]} for more in e[10:])])
        assert run(*EXTRACT, "-q") == 0
        assert run("train", "-q", *QUICK) == 0
        assert run("eval", "-q") == 0
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(text_encoders, "TINY", tiny)
    assert run("relocate", "mine", "-q") == 0
    return tmp_path
