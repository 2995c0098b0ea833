"""A misspelt name costs no import of torch: all commands run in a process where torch cannot be imported."""

import json
import subprocess
import sys

import pytest
import torchvision

from cmrhash.encoders.names import torchvision_models
from cmrhash.evaluation.metric_names import METRICS
from cmrhash.training import names
from cmrhash.training.methods import BUILT_IN, METHODS, method_names

FORBID = """
import contextlib, io, json, shlex, sys

class Forbidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbidden())
from cmrhash_cli.main import main

found = {}
for typed in json.load(sys.stdin):
    sys.argv = ["cmrhash", *shlex.split(typed)]
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code, told = repr(error), io.StringIO()
    found[typed] = code, told.getvalue()
print(json.dumps(found))
"""
TYPOS = {
    "extract --dataset sampel": "did you mean sample",
    "extract --image-model resnt18": "did you mean resnet18",
    "extract --image-model ./nowhere": "not a directory with a vision model",
    "extract --image-weights nowhere.pth": "no such weights file",
    "extract --text-model nowhere/to/be/found": "not a directory with a text model",
    "extract --text-model de=nowhere/to/be/found": "not a directory with a text model",
    "train --bits": "error: Option '--bits' requires an argument: see cmrhash train --help\n",
    "extract --text-model bertt --offline": "nor in the local cache",
    "extract --model nowhere/to/be/found": "not a directory with a",
    "extract --device cdua": "did you mean cuda",
    "extract --dtype floot32": "is not a number type",
    "extract --pooling men": "unknown pooling",
    "extract --layer poold": "unknown layer",
    "extract --runtime onx": "did you mean onnx",
    "extract --lang fr": "has no language 'fr'",
    "extract --finetune --method tie-app": "did you mean tie-ap",
    "train --dataset tyo": "did you mean toy",
    "train --method tripet": "did you mean triplet",
    "train --bits 3.5": "error: --bits: '3.5' is not a whole number: give one, such as 32\n",
    "train --bits 16,32": "error: --bits: '16,32' is not a whole number: repeat the option: --bits 16 --bits 32\n",
    "train --lr x": "error: --lr: 'x' is not a number: give one, such as 0.001\n",
    "train --seed -1": "error: --seed: -1 is out of range: give a number of at least 0\n",
    "search dog -k x": "error: --k: 'x' is not a whole number: give one, such as 32\n",
    "extract --max-bad 1.5": "error: --max-bad: 1.5 is out of range: give a number of at most 1\n",
    "train --device cdua:1": "did you mean cuda",
    "train --lang fr": "no features for language 'fr'",
    "train --encoder image=resnet50": "no image features by 'resnet50'",
    "train --encoder fr=toy": "is not trained",
    "train --relevance pair": "did you mean pairs",
    "eval --method tripet": "did you mean triplet",
    "compare --method tripet": "did you mean triplet",
    "compare --metric mapp": "did you mean map",
    "compare --device cdua": "did you mean cuda",
    "compare --relevance pair": "did you mean pairs",
    "search dog --dataset tyo": "did you mean toy",
}


@pytest.fixture(scope="module")
def told(make_cache, tmp_path_factory):
    """Exit code and stderr of each command, in a folder with an extracted data set and no run."""
    base = tmp_path_factory.mktemp("typos")
    make_cache(base / "cache")
    call = [sys.executable, "-c", FORBID]
    done = subprocess.run(call, input=json.dumps(list(TYPOS)), capture_output=True, text=True, cwd=base)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("typed", TYPOS)
def test_a_misspelt_name_is_refused_before_torch_is_imported(told, typed):
    code, err = told[typed]
    assert code in (2, 3, 4), (code, err)
    assert TYPOS[typed] in err
    assert err.splitlines()[-1].startswith("error: ")


def test_the_names_are_those_of_the_tables():
    assert {*names.METHODS, *names.REPRODUCTION} == BUILT_IN
    own = [METHODS[name] for name in BUILT_IN]  # other tests register methods
    assert method_names(lambda method: method in own) == [*names.METHODS, *names.REPRODUCTION]
    assert list(METRICS) == ["map", "r@1", "r@5", "r@10"]


def test_the_names_of_torchvision_are_all_read_out_of_its_sources():
    classifiers = torchvision.models.list_models(module=torchvision.models)
    detectors = torchvision.models.list_models(module=torchvision.models.detection, include="fasterrcnn_*")
    assert set(torchvision_models()) == {*classifiers, *detectors}
