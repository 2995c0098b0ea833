#!/usr/bin/env python3
"""Print the lowest declared version of every dependency, one pip constraint per line.

Usage: lowest.py [EXTRA ...]; the dependencies of the named extras are included.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)(?P<marker>; .+)?")


def constraints(requirements: list[str]) -> Iterator[str]:
    """Yield lines such as ``numpy==2.0``; an extra of this package stands for its own requirements."""
    for requirement in requirements:
        if own := re.fullmatch(r"cmrhash\[(.+)\]", requirement):
            for extra in own[1].split(","):
                yield from constraints(PROJECT["optional-dependencies"][extra])
        elif found := REQUIREMENT.fullmatch(requirement):
            yield f"{found['name']}=={found['version']}{found['marker'] or ''}"
        else:
            raise SystemExit(f"pyproject.toml: {requirement}: no lowest version")


if __name__ == "__main__":
    print(*constraints(PROJECT["dependencies"] + [f"cmrhash[{extra}]" for extra in sys.argv[1:]]), sep="\n")
