"""``pytest -m faults``: what is done to cmrhash on purpose, counted into one table.

A test says which row it belongs to, ``@pytest.mark.faults("broken photos")``. It counts as one fault, survived if it
passes; a test that provokes many of them counts itself with the ``faults`` fixture, and may do the same to the way one
would otherwise write it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import pytest

ROWS = (  # in the order of the table
    "crash at a write: killed",
    "crash at a write: torn",
    "crash at a write: power cut",
    "killed for real, extraction resumed",
    "killed for real, training resumed",
    "killed for real, collection changed",
    "disk full",
    "second writer, reader meanwhile",
    "flipped bit",
    "cut short",
    "stale: one field of the recipe",
    "not stale: moved, touched, elsewhere",
    "data set changed since its extraction",
    "broken or odd photo",
    "broken or odd text",
    "bad labels, codes, features, Faiss calls",
    "limit of memory",
    "bad command line",
    "hostile file",
    "changed bytes in a foreign file",
    "odd stream or foreign text",
    "record of others: field missing or of another type",
    "name that two systems read differently",
    "store: an entry that names what others made",
    "file system that lacks something",
    "limit of an option",
    "web page: host, origin, size, type, path, slow body",
    "web page: slow, idle and hostile clients",
    "web page: requests drawn from its OpenAPI document",
    "hub: refused, cut off, changed, foreign",
    "training: NaN, no negative, collapse",
)


@dataclass
class Count:
    """Faults of one row. lost: rows, epochs or bytes that were reported as finished and are gone or wrong.

    naive_tried, naive_survived: the same done to the naive way.
    """

    tried: int = 0
    survived: int = 0
    lost: int = 0
    naive_tried: int = 0
    naive_survived: int = 0

    def __iadd__(self, other: Count) -> Count:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def line(self, row: str) -> str:
        naive = f"{self.naive_survived} of {self.naive_tried}" if self.naive_tried else "-"
        return f"{row:52}{self.tried:>7}{self.survived:>10}{self.lost:>6}{naive:>16}"


@pytest.fixture
def faults() -> Count:
    """Where a test that provokes more than one fault counts them: ``faults.tried += 1``. All must be survived."""
    return Count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faults(row): something is broken on purpose; see tests/fault_table.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("faults"):
            assert mark.args[0] in ROWS, f"{item.nodeid}: no row {mark.args[0]!r} in tests/fault_table.py"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("faults")
    if mark and (report.when == "call" or report.failed) and not report.skipped:
        count = getattr(item, "funcargs", {}).get("faults")
        if not count or not count.tried + count.naive_tried:
            count = Count(tried=1, survived=int(report.passed))
        elif report.passed and (count.survived != count.tried or count.lost):
            report.outcome, report.longrepr = "failed", f"survived {count.survived} of {count.tried}, lost {count.lost}"
        report.user_properties.append(("faults", (mark.args[0], asdict(count))))
    return report


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if "faults" not in config.option.markexpr:
        return
    counts: dict[str, Count] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "faults":
                    row, count = value
                    counts.setdefault(row, Count()).__iadd__(Count(**count))
    terminalreporter.section("faults")
    terminalreporter.line(f"{'fault':52}{'tried':>7}{'survived':>10}{'lost':>6}{'the naive way':>16}")
    for row in ROWS:
        if row in counts:
            terminalreporter.line(counts[row].line(row))
    total = Count()
    for count in counts.values():
        total += count
    terminalreporter.line(total.line("all"))
