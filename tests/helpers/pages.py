"""The pages of the documentation, and the code that stands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cmrhash

ROOT = Path(cmrhash.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "cache/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]  # the code of the last two is not run
STARTERS = re.compile(r"^.*?(?:--no-python|parallel) (?=cmrhash )")  # what starts cmrhash, in many processes say
# how a program in Python starts, or printed output: a block that starts so, or goes on so, does it to its end
TO_THE_END = re.compile(r"import |from |[a-z_]+ = |sample: mAP")


@dataclass(frozen=True)
class Section:
    """A page from one heading of the second level to the next."""

    page: Path
    title: str
    blocks: tuple[str, ...]  # what is set as code without a word between, blank lines inside

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.title}"

    @property
    def text(self) -> str:
        return "\n".join(self.blocks)

    def steps(self) -> Iterator[str]:
        """Its code in order: a line, a command of one with "&&", or the whole of a program or of printed output."""
        for block in self.blocks:
            lines = block.splitlines()
            while lines:
                if TO_THE_END.match(lines[0]):
                    yield "\n".join(lines)
                    break
                yield from (step for step in re.split(r" +&& +", lines.pop(0).strip()) if step)


def sections(page: Path, whole: bool = False) -> list[Section]:
    """The sections of a page that have code; whole: the page as a single one."""
    found, title, blocks, within = [], page.stem, [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("## ") and not whole:
            found.append(Section(page, title, tuple(blocks)))
            title, blocks = line[3:], []
        if line.startswith("    "):
            blocks[len(blocks) - within :] = ["\n".join([*blocks[len(blocks) - within :], line[4:]])]
            within = True
        elif line.strip():
            within = False
        elif within:
            blocks[-1] += "\n"
    return [section for section in [*found, Section(page, title, tuple(blocks))] if section.blocks]


def calls(step: str) -> list[list[str]]:
    """The words of every call of cmrhash in a step, as the shell would split them, without what may be left out."""
    found = []
    for part in re.sub(r"\$\(\(.*?\)\)", "1", STARTERS.sub("", step)).split(" ::: "):
        while part != (part := re.sub(r" ?\[[^\[\]]*\]", "", part)):
            pass
        if re.match(r"cmrhash [a-z]", part):
            found.append([word for word in shlex.split(part, comments=True)[1:] if word != "..."])
    return found
