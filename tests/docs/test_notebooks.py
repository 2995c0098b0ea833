"""The notebooks run on a few scenes of the built-in data set, in this process; their stored outputs are small."""

import contextlib
import json
import re

import pytest
from pages import ROOT

from cmrhash.data import sample

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SCENES = 80  # instead of 1000
LARGEST = 60_000  # bytes of a picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the built-in data set is drawn already, small."""
    base = tmp_path_factory.mktemp("notebooks")
    sample.draw(base / "cache/sample/drawn", count=SCENES)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, folder, capsys):
    pytest.importorskip("sklearn", reason='needs pip install "cmrhash[viz]"')
    pyplot = pytest.importorskip("matplotlib.pyplot", reason='needs pip install "cmrhash[viz]"')
    pyplot.switch_backend("agg")
    names = {}
    with contextlib.chdir(folder):
        for number, cell in enumerate(cells(path)):
            source = re.sub(r'(epochs(?:=|": ))\d+', r"\g<1>1", "".join(cell["source"]))  # one epoch is quick
            exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)
    pyplot.close("all")
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_small_and_no_errors(path):
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert all(len(picture) * 3 / 4 < LARGEST for picture in pictures)
    assert not [cell for cell in cells(path) if any(line.startswith(("%", "!")) for line in cell["source"])]


def test_both_notebooks_are_found():
    assert [path.stem for path in NOTEBOOKS] == ["comparison", "search"]
