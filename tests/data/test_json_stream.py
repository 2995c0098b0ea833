"""Members of large JSON objects, against the json module on the whole text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.data import json_stream
from cmrhash.data.parsing import unique_keys

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3), v, max_size=3))


def streamed(path):
    """The object put together again."""
    whole, lists = {}, set()
    for key, value in json_stream.members(path, unique_keys):
        if key in lists:
            whole[key].append(value)
        else:
            whole[key] = value
            if value == []:
                lists.add(key)
    return whole


@given(
    whole=st.dictionaries(st.text(max_size=4), VALUES, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    mark=st.booleans(),
    ascii_only=st.booleans(),
)
def test_members_are_those_of_the_whole_text(tmp_path_factory, whole, chunk, indent, mark, ascii_only):
    path = tmp_path_factory.mktemp("json") / "x.json"
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
    try:
        path.write_text(text, encoding="utf-8-sig" if mark else "utf-8")
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8
        path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        assert streamed(path) == whole


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "1",
            "{",
            '{"a"',
            '{"a":',
            '{"a": 1',
            '{"a": 1,',
            '{"a": 1,}',
            '{"a": [1',
            '{"a": [1,]}',
            '{"a": [,]}',
        ),
        *(
            '{"a": 1} x',
            '{"a": 1}}',
            '{"a": 1, "a": 2}',
            '{"a": [{"b": 1, "b": 2}]}',
            "{1: 2}",
            '{"a" 1}',
            '{"a": [1 2]}',
        ),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_what_is_no_object_is_refused(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="."):
        list(json_stream.members(tmp_path / "x.json", unique_keys))


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="utf-8"):
        list(json_stream.members(tmp_path / "x.json", unique_keys))


def test_what_was_read_is_forgotten(tmp_path, monkeypatch):
    """The text in memory stays below a few chunks, however long the list is."""
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    entries = [{"id": n, "outline": [0.5] * 20} for n in range(2000)]
    (tmp_path / "x.json").write_text(json.dumps({"a": entries}), encoding="utf-8")
    longest = 0
    read = json_stream._Text._read

    def watched(text, size):
        nonlocal longest
        read(text, size)
        longest = max(longest, len(text._text))

    monkeypatch.setattr(json_stream._Text, "_read", watched)
    assert streamed(tmp_path / "x.json") == {"a": entries}
    assert longest < 3000
