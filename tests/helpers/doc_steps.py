"""The code of README and docs, run as it stands, section by section, in this process, on small data sets.

A new line needs nothing here if it is a command of cmrhash, a program in Python or one of RUNNERS, and ``given`` knows
the files that it takes as given. A line that cannot be run is named in NOT_RUN, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from given import BERT, CLOSED, DATASETS, FEW_FEATURES, Extracted, datasets, options, place, train_runs, write_line
from local_hub import OWNER, TOKEN, only_this_machine, taken_for_the_hub
from pages import PAGES, ROOT, Section, calls, sections
from running import run
from trees import WRITERS

from cmrhash.config import SAMPLE_DATASET, ExtractConfig
from cmrhash.data import sample
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import check
from cmrhash.encoders.graphs import PACKAGES
from cmrhash.training import kernel_codes

ONE = ("docs/tutorial.md", "docs/sharing.md")  # pages whose sections use the files of earlier sections
SECTIONS = [section for page in PAGES for section in sections(page, whole=str(page.relative_to(ROOT)) in ONE)]
STEPS = [step for section in SECTIONS for step in section.steps()]
SCENES = 80  # of the built-in sample, in place of 1000

# What is not run: how such a step starts, and why.
NOT_RUN = {
    "pip install": "wants a fresh environment and the package index: .ci/run starts with the README's line",
    "uv pip install": "the same, with PyTorch of the CPU",
    "git clone": "the same",
    "cd cmrhash": "the same",
    "python3 -m venv": "the same",
    "source venv": "the same",
    "pytest": "this is it, or a part of it that runs with the others",
    "python -m cmrhash.bench.scale": "measures, and so takes long: test_scale.py runs it on a few items",
    "cmrhash bench": "measures, and so takes long: test_bench.py runs every path of it on a few items",
}

# What is appended to a command: to which one, what, and why.
IMAGE, FEWER, NODES = (
    f"--image-model {name} --image-weights random" for name in ("mobilenet_v3_small", FEW_FEATURES, "squeezenet1_1")
)
APPENDED = [
    (r"extract (?=.*--runtime onnx)", f"{NODES} --text-model {BERT}", "is exported in 2 s, the others in 9"),
    (
        r"extract (?=\w|.*--dataset)(?!.*--(model|image-model|image-weights|features|root ROOT|runtime))",
        IMAGE,
        "downloads nothing, and is quick",
    ),
    (r"extract (?=.*--root ROOT)", FEWER, "the same; cca follows, which is quick if the features are few"),
    (r"extract (?=\w|.*--dataset)(?!.*--(model|text-model|features))", f"--text-model {BERT}", "downloads nothing"),
    (
        r"extract (?=.*--(finetune|name))(?!.*--(dataset|features|model|image-model|runtime))",
        f"{IMAGE} --text-model {BERT}",
        "quicker than the sample's own",
    ),
    (r"extract .*--finetune", "--epochs 1", "25 take long"),
    (rf"(train|compare) (?!(--(?!method)\S+ \S+ )*--method ({CLOSED}) (?!.*--method))", "--epochs 1", "60 take long"),
    (r"compare ", "--seeds 1", "is quick"),
    (r"sweep ", "--seeds 1 --set epochs=1", "is quick"),
    (r"plot $", "--format svg", "PNG files take as long again"),
    (r"export (?!.*--with-encoders)", "--with-encoders", "no hub is asked for them afterwards"),
    (r"serve ", "--port 0", "somebody else may listen there"),
]

TRAININGS = 4  # of a grid, or one length of each method: more take long, and show nothing else

# What is left off a command: its option, and why.
LEFT_OFF = {"cmrhash export whole --with-encoders --onnx": ("--onnx", "takes 12 s: docs/sharing.md has it, too")}

# What is run before a section, which may ask more of its reader than the first lines of the README.
BEFORE = {
    "docs/cli.md: cmrhash add": "cmrhash index --dataset shop --store faiss:/srv/codes",
    "docs/cli.md: cmrhash eval": "cmrhash train --relevance pairs",
    "docs/cli.md: cmrhash search": "cmrhash index --store postgresql://me@host/photos",
    "docs/cli.md: cmrhash plot": "cmrhash train --bits 16",
    "docs/plots.md: Plots": "cmrhash train --bits 16",
}

# What stands for something else in the pages, or would take long.
ANY_DATASET = {"--dataset NAME --root DIR": "--dataset {0} --root {0}", "extract DIR ": "extract {0} "}  # each of them
POSTGRES = "postgresql://me@host/photos"  # the server of the tests
STORE = "/srv/codes"  # a folder
HUB = "owner/name"  # a repository on a hub in this process
MEANT = {
    HUB: f"{OWNER}/codes",
    "cmrhash.train(data, bits=32)": "cmrhash.train(data, bits=32, epochs=1)",
    "N = 1_000_000": "N = 1_000",
}

# What a program takes as given: its variables.
VARIABLES = {
    "keys": ["a", "b", "c"],
    "packed": np.zeros((3, 8), np.uint8),
    "queries": np.ones((2, 8), np.uint8),
    "embeddings": np.ones((2, 64), np.float32),
    "code": np.zeros((1, 8), np.uint8),
}


@functools.cache
def start(base):
    """A folder in which the first lines of the README have been run."""
    sample.draw(base / "start/cache/sample/drawn", count=SCENES)
    with contextlib.chdir(base / "start"):
        for step in SECTIONS[0].steps():
            for words in calls(step):
                assert run(*appended(words)) == 0
    return base / "start"


@functools.cache
def extracted(base):
    """Data sets that pages take as given."""
    return Extracted(base / "extracted")


class Page:
    """Runs a section in a folder of its own."""

    def __init__(self, request):
        names = ("tmp_path", "tmp_path_factory", "monkeypatch", "capsys")
        self.folder, factory, self.monkeypatch, self.capsys = map(request.getfixturevalue, names)
        self.base = factory.getbasetemp()  # of all tests in this process
        self.request = request
        self.names, self.printed, self.requests, self.asked, self.hub = dict(VARIABLES), [], [], [], None

    def run(self, section):
        """Lay down what it takes as given, then run its steps one after the other."""
        self.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        self.monkeypatch.delenv("CMRHASH_STORE", raising=False)
        self.monkeypatch.setattr(kernel_codes, "STEPS", 100)  # of 2000
        section = self.put_in(section)
        self.requests = [step for step in section.steps() if step.startswith("curl ")]
        made, used = datasets(section)
        if SAMPLE_DATASET in made | used or not made | used:  # else its commands mean the only data set that there is
            left = ("runs",) if SAMPLE_DATASET in made else ()  # it trains its own
            shutil.copytree(start(self.base), self.folder, ignore=shutil.ignore_patterns(*left), dirs_exist_ok=True)
        self.monkeypatch.chdir(self.folder)
        place(section, self.folder)
        extracted(self.base).lay_bert(self.folder)
        for name in sorted(used - {SAMPLE_DATASET}):
            assert name in DATASETS, f"nobody extracts {name}, and it is not among DATASETS"
            extracted(self.base).lay(name, self.folder)
            train_runs(name, section)
        self.capsys.readouterr()
        with self.a_hub() if MEANT[HUB] in section.text else contextlib.nullcontext():
            for step in section.steps():
                if not left_out(step):
                    self.step(step)

    def put_in(self, section):
        """The section with what stands for something else put in, after what is run before it."""
        blocks = []
        for block in [*([BEFORE[str(section)]] if str(section) in BEFORE else []), *section.blocks]:
            for mark, meant in MEANT.items():
                block = block.replace(mark, meant)
            block = block.replace(STORE, f"{self.folder}/codes")
            if POSTGRES in block:
                block = block.replace(POSTGRES, self.request.getfixturevalue("postgres").url)
            for what, each in ANY_DATASET.items():
                for line in [line for line in block.splitlines() if what in line]:
                    block = block.replace(line, "\n".join(line.replace(what, each.format(name)) for name in WRITERS))
            blocks.append(block)
        return Section(section.page, section.title, tuple(blocks))

    @contextlib.contextmanager
    def a_hub(self):
        """A model hub in this process, and its owner logged in."""
        only_this_machine(self.monkeypatch)
        with taken_for_the_hub(self.monkeypatch, self.folder / "hub") as self.hub:
            self.monkeypatch.setenv("HF_TOKEN", TOKEN)
            yield

    def step(self, step):
        """Run a step; whatever it is, it must end well and say something else than a traceback."""
        next(runner for start, runner in RUNNERS.items() if re.match(start, step))(self, step)
        out = self.capsys.readouterr()
        assert "Traceback" not in out.out + out.err
        self.printed += [line for line in (out.out + out.err).splitlines() if line.strip()]

    def command(self, step):
        for words in calls(step):
            if words[0] == "serve":
                self.monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: self.serve(server.config.app))
            code = run(*appended(words, LEFT_OFF.get(step)))
            assert code == 0, f"{step}: exit code {code}: {self.capsys.readouterr().err}"
        if self.hub:
            for repo in self.hub.repos.values():
                repo.refs["v1"] = repo.refs["main"]  # as its owner would tag what was pushed

    def serve(self, app):
        """In place of listening: the page is asked what the section asks it by curl."""
        testclient = pytest.importorskip("fastapi.testclient", reason='needs pip install "cmrhash[serve]"')
        with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as client:
            assert client.get("/").status_code == 200
            for request in self.requests:
                words = shlex.split(request)
                form = dict(field.split("=", 1) for field in options(words, "-F"))
                files = {name: Path(value[1:]).read_bytes() for name, value in form.items() if value.startswith("@")}
                answer = client.post(words[-1], files=files, data={n: v for n, v in form.items() if n not in files})
                assert answer.status_code == 200, answer.text
                assert answer.json()["results"]
                self.asked.append(request)

    def curl(self, step):
        assert step in self.asked, "nothing was served before"

    def program(self, source):
        if "onnxruntime" in source:
            pytest.importorskip("onnxruntime", reason="pip install cmrhash[onnx]")
        exec(compile(source, "<page>", "exec"), self.names)

    def python(self, step):
        exec(compile(shlex.split(step)[2], "<page>", "exec"), {})

    def shell(self, step):
        if all(shutil.which(shlex.split(part)[0]) for part in step.split("|")):
            done = subprocess.run(step, shell=True, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()

    def layout(self, step):
        """A path of an archive: there are such ones."""
        assert list(self.folder.glob(re.sub(r"\bNN\b", "*", re.sub(r"\bID\b", "*", step)))), step

    def line(self, step):
        """A line of a manifest: it is read as the one item of a data set."""
        entry = write_line(step, self.folder / "line")
        [item] = check(read_dataset(ExtractConfig(dataset="manifest", root=self.folder / "line"))).items
        assert (item.id, set(item.texts), item.splits) == (entry["id"], set(entry["texts"]), set(entry["splits"]))

    def shown(self, text):
        """What the commands before print: these lines, whatever the figures."""
        printed = {shape(line) for line in self.printed}
        for line in filter(str.strip, text.splitlines()):
            assert shape(line) in printed, f"no command prints {line!r}"


# How a step starts: what runs it.
RUNNERS = {
    "cmrhash ": Page.command,
    "torchrun |parallel ": Page.command,  # what they start, in one process
    "import |from |[a-z_]+ = ": Page.program,
    "python -c ": Page.python,
    "curl ": Page.curl,
    "head ": Page.shell,
    r"[A-Z]+/": Page.layout,
    r'\{"id"': Page.line,
    "sample: mAP": Page.shown,
}


def appended(words, left_off=None):
    """The words of a command with what APPENDED says, without what LEFT_OFF says or needs packages that are missing."""
    if left_off or any(importlib.util.find_spec(name) is None for name in PACKAGES):
        words = [word for word in words if word not in (left_off or ["--onnx", "--runtime", "onnx"])]
    if words[0] == "compare":
        lengths = max(1, TRAININGS // max(1, words.count("--method")))
        further = [at for at, word in enumerate(words) if word == "--bits"][lengths:]
        words = [word for at, word in enumerate(words) if not {at, at - 1} & set(further)]
    text = " ".join(words) + " "
    return words + [word for command, more, _ in APPENDED if re.match(command, text) for word in more.split()]


def shape(line):
    """A line without its figures, digests and spaces."""
    line = re.sub(r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b|[-+]?\d[\d.]*(?!\w)", "#", line)
    return " ".join(re.sub("─+", "-", line).split())


def left_out(step):
    return any(step.startswith(start) for start in NOT_RUN)
