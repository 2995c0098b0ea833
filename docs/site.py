"""Hooks of mkdocs.yml: pages that are not Markdown files in docs/, and docstrings as Markdown."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # path in the repository -> path on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docs/README.md": "overview.md",
}
MARKUP = {"<": "&lt;", "*": r"\*"}
CODE = "https://github.com/cmrhash/cmrhash/blob/main/"
NEAR = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of ELSEWHERE and the notebooks."""
    for file in [file for file in files if file.src_uri == "README.md" or file.src_uri.endswith(".ipynb")]:
        files.remove(file)
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=markdown(notebook)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site, and links to other files of the repository at its web view."""
    source = next((path for path, name in ELSEWHERE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def target(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        name = ELSEWHERE.get(path, re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/")))
        shown = (file := files.get_file_from_path(name)) and file.inclusion.is_included()
        if shown and (path in ELSEWHERE or path.startswith("docs/")):
            return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return CODE + path if (ROOT / path).exists() else found[1]

    return re.sub(r"(?m)^(?! {4}).*", lambda line: line[0].replace(" +- ", NEAR), LINK.sub(target, text))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark short code, such as the name of an option, which is not broken at its hyphens."""
    return re.sub(r"<code>([^<\n]{1,24})</code>", r'<code class="short">\1</code>', html)


def markdown(notebook: dict[str, Any]) -> str:
    """Cells of a notebook with their outputs, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced("python", source))
        parts += [shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any]) -> str:
    """An output of a cell: a picture, else its text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return fenced("text", "".join(data.get("text/plain", output.get("text", ""))))


def fenced(language: str, text: str) -> str:
    """A block of code, or of output."""
    return f"````{language}\n{text.rstrip()}\n````"


class Docstrings(griffe.Extension):
    """Doctests as code, parameters as a list, and the fields of settings with their comments as a table."""

    def on_instance(self, *, obj: griffe.Object, **options: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring:
            parts = obj.docstring.value.split("\n\n")
            text = "\n\n".join(listed(part, parameters(obj)) for part in parts)
            text = re.sub(r"(?m)^(?!    |>>> ).*", escaped, text)
            obj.docstring.value = re.sub(r"(?m)(^>>> .*\n?(?:.+\n?)*)", r"```pycon\n\1\n```\n", text)

    def on_class_members(self, *, cls: griffe.Class, **options: Any) -> None:
        """Add the fields to the docstring of a class of settings."""
        if cls.name.endswith("Config") and cls.docstring:
            cls.docstring.value += "\n\n| field | default | meaning |\n|---|---|---|\n" + "\n".join(fields(cls))


def parameters(obj: griffe.Object) -> list[str]:
    """Names that a docstring describes as "name: ...": parameters of a function, fields of a class."""
    if isinstance(obj, griffe.Class):
        made = obj.members.get("__init__")
        return [*obj.members, *(made.parameters if isinstance(made, griffe.Function) else [])]
    return [one.name.lstrip("*") for one in obj.parameters] if isinstance(obj, griffe.Function) else []


def listed(paragraph: str, names: list[str]) -> str:
    """A paragraph of a docstring in which each "name: ..." is an item of a list, and the errors come below it."""
    known = "|".join(map(re.escape, names))
    if not known or re.search("(?m)^(    |>>> )", paragraph):
        return paragraph
    text, found = re.subn(
        rf"(?:^|(?<=[.;])\s+)((?:{known})(?:,\s+(?:{known}))*):\s+", r"\n- `\1`: ", " ".join(paragraph.split())
    )
    return re.sub(r"(?<=\.) (?=Raises )", "\n\n", text.replace("\n", "\n\n", 1)) if found else paragraph


def escaped(line: re.Match[str]) -> str:
    """A line of prose whose "<" and "*" outside of backticks are no markup."""
    return re.sub(r"(`+).*?\1|[<*]", lambda found: MARKUP.get(found[0], found[0]), line[0])


def fields(cls: griffe.Class) -> Iterator[str]:
    """Rows of a table: the fields of a class with the comments behind or above them."""
    lines, above = cls.source.splitlines(), ""
    for line in lines:
        comment = line.partition("  # ")[2] or above
        if found := re.match(r"    (\w+): .*? = (.*?)(?:  # .*)?$", line):
            yield f"| `{found[1]}` | `{found[2]}` | {comment.replace('|', chr(92) + '|')} |"
        above = f"{above} {line.strip()[2:]}".strip() if line.strip().startswith("# ") else ""
