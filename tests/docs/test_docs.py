"""README and docs: commands that exist, links that lead somewhere, a reference that is up to date."""

import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest
import typer
import yaml
from pages import PAGES, ROOT, TEXTS, calls, sections

from cmrhash import METHODS, __version__
from cmrhash.config import DATASETS, SAMPLE_DATASET
from cmrhash.search.stores import KINDS
from cmrhash.training.names import ALIGNMENTS
from cmrhash_cli.main import app
from cmrhash_cli.reference import reference

INLINE = re.compile(r"`([^`\[]*\bcmrhash [a-z][^`\[]* --[^`\[]*)`")  # with an option, else it may be a mere name


def commands(page):
    """Every call of ``cmrhash`` in a page: in its code, and with options within a line of text."""
    steps = [step for section in sections(page) for step in section.steps()]
    text = re.sub(r"(?m)^    .*$", "", page.read_text(encoding="utf-8")) if page.name != "cli.md" else ""
    for span in INLINE.findall(text):
        steps += " ".join(span.split()).split(" && ")
    return [words for step in steps for words in calls(step)]


def test_the_pages_are_there():
    assert len(PAGES) > 8
    assert sum(len(commands(page)) for page in PAGES) > 60


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_command_can_be_typed(page):
    """Parsed as far as the options go: an unknown command, option or type of value is an error."""
    top = typer.main.get_command(app)
    for words in commands(page):
        command, rest = top, words
        while hasattr(command, "commands"):
            name, *rest = rest
            assert name in command.commands, f"{page.name}: cmrhash {' '.join(words)}"
            command = command.commands[name]
        command.make_context(name, list(rest))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    assert all((ROOT / name).stat().st_size < 150_000 for name in pictures)


def test_the_reference_is_that_of_the_commands():
    written = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert written == reference(), "python -m cmrhash_cli.reference > docs/cli.md"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data.md", set(DATASETS) - {SAMPLE_DATASET}),
        ("methods.md", METHODS.keys() - ALIGNMENTS.values()),
        ("scale.md", KINDS.keys() - {"postgres"}),  # which PostgreSQL itself calls postgresql, too
    ],
)
def test_the_table_of_a_page_names_every_choice(page, names):
    rows = re.findall(r"(?m)^\| (`[^|]*)\|", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    named = {word.partition(":")[0] for word in re.findall(r"`([^`]+)`", " ".join(rows))}
    assert sorted(names - named) == []


def test_architecture_names_functions_that_exist():
    names = re.findall(r"`((?:[a-z_]+\.)+\w+)`(?!\()", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(names) > 50
    for name in names:
        if not name.endswith((".json", ".jsonl", ".blocks", ".h5", ".safetensors", ".py")):  # files
            pkgutil.resolve_name(name if name.startswith("cmrhash_cli.") else f"cmrhash.{name}")


def test_every_file_names_the_same_version():
    assert re.search(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))[1] == __version__
    released = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert released[:2] == ["Unreleased", __version__]


def test_the_workflow_tests_every_supported_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = {name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name}
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == supported
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == min(supported)


def test_every_dependency_has_a_lowest_version():
    done = subprocess.run([sys.executable, ROOT / ".ci/lowest.py", "test", "dev"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"torch", "scipy", "pytest", "ruff"} <= {line.partition("==")[0] for line in done.stdout.splitlines()}
