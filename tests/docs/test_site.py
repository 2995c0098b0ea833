"""The site: every page in its navigation, every public name in its reference, every variable in its table."""

import ast
import re

import yaml
from pages import ROOT

import cmrhash

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
MODULES = [path for room in ("cmrhash", "cli") for path in (ROOT / room).rglob("*.py")]


def pages(entry):
    """Every path of a navigation."""
    if isinstance(entry, str):
        return [entry]
    return [path for part in (entry.values() if isinstance(entry, dict) else entry) for path in pages(part)]


def elsewhere():
    """Pages of the site that are files of the repository under another path, as docs/site.py has them."""
    tree = ast.parse((ROOT / "docs/site.py").read_text("utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "ELSEWHERE"]
    return ast.literal_eval(found.value)


def test_the_navigation_has_every_page_once_and_no_other():
    docs = ROOT / "docs"
    written = {str(path.relative_to(docs)) for path in docs.rglob("*.md") if path != docs / "README.md"}
    written |= {f"notebooks/{path.stem}.md" for path in docs.glob("notebooks/*.ipynb")} | set(elsewhere().values())
    assert sorted(pages(CONFIG["nav"])) == sorted(written)
    assert all((ROOT / path).exists() for path in elsewhere())


def test_the_overview_names_every_page():
    text = (ROOT / "docs/README.md").read_text("utf-8")
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(name for name in names if name not in text) == []


def test_the_reference_has_every_public_name():
    named = re.findall(r"(?m)^::: cmrhash\.(\w+)$", (ROOT / "docs/api.md").read_text("utf-8"))
    assert sorted(named) == sorted(set(cmrhash.__all__) - {"__version__"})


def test_the_table_of_variables_has_every_one_that_is_read():
    code = "\n".join(path.read_text("utf-8") for path in MODULES)
    read = set(re.findall(r'(?:environ(?:\.get\(|\[)|envvar=)"([A-Z_]+)"', code))
    assert len(read) > 4
    page = (ROOT / "docs/environment.md").read_text("utf-8")
    inner = {"PYTHONPATH", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"}  # of started processes
    assert sorted(name for name in read - inner if f"`{name}`" not in page) == []
