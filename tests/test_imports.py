"""Imports run one way, each heavy or risky library has one door, and looking at the help loads none of them."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cmrhash

TREE = Path(cmrhash.__file__).parent
MAY_IMPORT = {  # a room and the rooms that it may import; docs/architecture.md says what lives where
    "errors": "",
    "config": "",
    "checks": "errors config",
    "storage": "errors",
    "compute": "errors",
    "retrieval": "errors storage",
    "data": "errors config storage",
    "encoders": "errors config storage compute",
    "features": "errors checks config storage compute retrieval data encoders",
    "training": "errors checks config storage compute retrieval data encoders features",
    "evaluation": "errors checks config storage compute retrieval data encoders features training",
    "search": "errors checks config storage compute retrieval data encoders features training evaluation",
    "show": "errors checks config storage compute retrieval data encoders features training evaluation search",
    "api": "errors checks config storage compute retrieval data encoders features training evaluation search",
    "maintenance": "errors checks config storage compute retrieval data encoders features training evaluation "
    "search show",
    "bench": "errors checks config storage compute retrieval data encoders features training evaluation search show",
}
FREE = {"__init__", "version"}  # the public face, which imports on demand, and one line that every room may import
HEAVY = ("torch", "torchvision", "transformers", "faiss", "h5py", "numpy", "matplotlib", "sklearn")


def sources(*trees):
    return [path for tree in trees for path in sorted(tree.rglob("*.py"))]


def cli_tree():
    import cmrhash_cli

    return Path(cmrhash_cli.__file__).parent


def imported(path):
    """Every module that a file imports, wherever in the file, as dotted names."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path):
    return path.relative_to(TREE).parts[0].removesuffix(".py")


def test_every_room_is_in_the_table():
    assert {room(path) for path in sources(TREE)} - FREE == set(MAY_IMPORT)


def test_the_documentation_shows_this_table():
    page = (TREE.parent / "docs/architecture.md").read_text(encoding="utf-8").partition("## Central types")[0]
    rows, shown = [row.split("|")[1:4:2] for row in page.splitlines() if row.startswith("| `")], {}
    for room, may in rows:
        names = set(re.findall(r"`(\w+)`", may))
        shown[room.strip(" `")] = shown.keys() - names if may.strip().startswith("all above") else names
    assert shown == {room: set(may.split()) for room, may in MAY_IMPORT.items()}


def test_a_room_imports_only_from_rooms_above_it():
    for path in sources(TREE):
        theirs = {name.split(".")[1] for name in imported(path) if name.startswith("cmrhash.")}
        if room(path) not in FREE:
            wrong = theirs - FREE - {room(path), *MAY_IMPORT[room(path)].split()}
            assert not wrong, f"{path.relative_to(TREE)} imports {wrong}"


def test_the_library_knows_nothing_of_the_command_line():
    for path in sources(TREE):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"cmrhash_cli", "typer", "click", "rich"}, path


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("h5py", {"hdf5.py", "file.py", "foreign_hdf5.py"}),  # our files, and those of others
        ("faiss", {"index.py"}),
        ("psycopg", {"postgresql.py"}),
        ("pyarrow", {"parquet_file.py"}),
        ("pymilvus", {"milvus.py"}),
        ("matplotlib", {"plots.py", "sources.py", "themed.py"}),  # the latter two for a type alone
        ("sklearn", {"tsne.py"}),
    ],
)
def test_a_library_with_traps_has_its_doors(library, doors):
    users = {
        path.name
        for path in sources(TREE, cli_tree())
        if library in {name.split(".")[0] for name in imported(path)}
        and path.parent.name != "bench"  # its naive ways do as scripts do
    }
    assert users == doors


def test_nothing_runs_code_out_of_a_file():
    for path in sources(TREE, cli_tree()):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f"{path}:{node.lineno}"
            assert call not in ("eval", "exec", "compile", "__import__"), where
            assert options.get("allow_pickle", "False") == "False", where
            assert options.get("trust_remote_code", "False") == "False", where
            if call == "torch.load":
                assert options.get("weights_only") == "True", where


def loaded_after(code):
    """The heavy modules that a fresh interpreter holds after running ``code`` in this folder."""
    tail = f"\nimport json\nprint(); print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", "import sys\n" + code + tail], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_importing_the_package_imports_nothing_heavy():
    assert loaded_after("import cmrhash, cmrhash.config, cmrhash.errors, cmrhash_cli.main")[0] == []


@pytest.mark.parametrize("args", ["--help", "--version", "extract -h", "train --help", "eval --help", "export --help"])
def test_help_loads_nothing_heavy(args):
    code = f"""
sys.argv = ["cmrhash", *{args.split()}]
from cmrhash_cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    heavy, shown = loaded_after(code)
    assert heavy == []
    assert "cmrhash" in shown


@pytest.mark.parametrize("texts", [(), ("--map", "text=", "--captions", "captions.txt", "--text-model", "bow")])
def test_ready_made_features_load_no_network(tmp_path, monkeypatch, texts):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((30, 4))
    np.savez("f.npz", image=x, text=x, label=np.arange(30) % 3)
    (tmp_path / "captions.txt").write_text("a dog\n" * 30)
    code = f"""
sys.argv = ["cmrhash", "extract", "--dataset", "features", "--features", "f.npz", *{texts}]
from cmrhash_cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    assert not {"torch", "torchvision", "transformers", "faiss"} & set(loaded_after(code)[0])
    assert (tmp_path / "cache/features/image-f.h5").exists()


def test_a_search_opens_only_what_encodes_its_query():
    assert not {"torch", "torchvision", "transformers"} & set(
        loaded_after("import cmrhash.search.hasher, cmrhash.features.reopen")[0]
    )
