"""Tables of the command line: whole in a pipe, and readable on a narrow terminal."""

import re

import pytest

from cmrhash_cli.tables import print_table

COLUMNS = ["method", "bits", "seed", *(f"figure {n}" for n in range(6))]
ROWS = [
    ["krr-ap", "16", "0", *(f"0.{n}01" for n in range(6))],
    ["  seen", "16", "0", "0.901", *[""] * 5],
    ["triplet", "32", "0", *(f"0.{n}02" for n in range(6))],
]
CAPTION = "protocol: words of a line that is longer than sixty characters, and that a terminal would cut in two"


@pytest.fixture
def printed(capsys, monkeypatch):
    """A function that prints a table on a terminal of a width, in a pipe for None, and returns its lines."""

    def call(width, *table, **how):
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(width or 80))
            patch.setattr("sys.stdout.isatty", lambda: width is not None)
            print_table(*table, **how)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return call


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_lost(printed, width):
    lines = printed(width, "a title", COLUMNS, ROWS, CAPTION, keys=3)
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert all(cell.strip() in words for cell in (*COLUMNS, *ROWS[0], *ROWS[2], CAPTION))
    assert not any("…" in line or "..." in line for line in lines)


def test_parts_repeat_the_keys_and_leave_empty_rows_out(printed):
    lines = printed(60, "a title", COLUMNS, ROWS, keys=3)
    assert lines[:2] == ["a title", "all rows: seed 0"]
    heads = [at for at, line in enumerate(lines) if line.startswith("method ")]
    assert len(heads) == 2
    first, second = lines[heads[0] : heads[1]], lines[heads[1] :]
    assert [line.split()[:2] for line in first[2:5]] == [["krr-ap", "16"], ["seen", "16"], ["triplet", "32"]]
    assert [line.split()[:2] for line in second[2:4]] == [["krr-ap", "16"], ["triplet", "32"]]


def test_a_pipe_gets_one_line_per_row(printed):
    lines = printed(None, "a title", COLUMNS, ROWS, CAPTION, keys=3, folded="method")
    assert lines[0] == "a title"
    assert lines[-1] == CAPTION
    assert [line.split() for line in lines[4:7]] == [[cell.strip() for cell in row if cell] for row in ROWS]


def test_a_pipe_for_readers_has_short_lines(printed):
    rows = [["ok", "word " * 30, "pip install something"], ["missing", "b", "c"]]
    lines = printed(None, "a title", ["state", "found", "to do"], rows, folded="found", below=["to do"], piped=60)
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).count("word") == 30


def test_a_narrow_terminal_shows_long_cells_below_each_other(printed):
    columns, text = ["rank", "id", "score", "caption", "labels", "image"], "a black dog that runs through the deep snow"
    rows = [[str(n), f"i{n}", f"0.{n}00", text, "dog, snow", f"images/{n}.jpg"] for n in (1, 2)]
    how = {"folded": "caption", "below": ("labels", "image")}
    lines = printed(50, "found", columns, rows, **how)
    assert max(map(len, lines)) <= 50
    head = next(line for line in lines if line.startswith("rank"))
    assert head.split(maxsplit=3)[3].strip() == "caption, labels, image"
    assert [line.strip() for line in lines].count("dog, snow") == 2
    assert printed(120, "found", columns, rows, **how)[2].split() == columns


def test_columns_are_as_wide_as_the_terminal_shows_them(printed):
    lines = printed(40, "wide signs", ["name", "words"], [["雪" * 8, "犬" * 8]])
    assert any("雪" * 8 in line and "犬" * 8 in line for line in lines)
    assert len(printed(30, "wide signs", ["name", "words"], [["雪" * 8, "犬" * 8]])) > 5


def test_a_table_without_rows_is_printed(printed):
    assert "a   b" in " ".join(printed(20, "none", ["a", "b"], []))
