"""Options that cannot be are refused in one line, with the exit code of their kind; no file changes."""

import pytest
from exit_codes import BITS, USAGE
from running import EXTRACT, files, run

HUGE = "9" * 20  # beyond 64 bits
EMPTY = [  # what an unset variable of the shell leaves behind
    (r"unknown data set ''", ["extract"], "--dataset"),
    (r"--name: '' cannot be a folder name: use letters", EXTRACT, "--name"),
    (r"no language ''", EXTRACT, "--lang"),
    (r"unknown image model ''", EXTRACT, "--image-model"),
    (r"no such weights", EXTRACT, "--image-weights"),
    (r"--text-model: no model is given", EXTRACT, "--text-model"),
    (r"--dtype: '' is not", EXTRACT, "--dtype"),
    (r"--query: '' is neither", EXTRACT, "--query"),
    (r"no extracted data set ''", BITS, "--dataset"),
    (r"no features for language ''", BITS, "--lang"),
    (r"unknown method ''", BITS, "--method"),
    (r"unknown relevance ''", BITS, "--relevance"),
    (r"--device: '' cannot", BITS, "--device"),
    (r"no extracted data set in this folder: \.:", BITS, "--cache"),
    (r"unknown relevance ''", ["eval"], "--relevance"),
    (r"--ties: unknown order '': choose", ["eval"], "--ties"),
    (r"--direction: unknown direction '': choose", ["eval"], "--direction"),
    (r"--map-at-rule: unknown rule '': choose", ["eval"], "--map-at-rule"),
    (r"unknown method ''", ["eval"], "--method"),
    (r"unknown metric ''", ["compare"], "--metric"),
]


@pytest.mark.slow
@pytest.mark.faults("bad command line")
@pytest.mark.parametrize(
    ("words", "args"),
    [
        (r"unknown data set 'nope'.*sample, folder, .* and 8 more", ["extract", "--dataset", "nope"]),
        (r"--root DIR", ["extract", "--dataset", "manifest"]),
        (r"no language 'fr'.*de, en", [*EXTRACT, "--lang", "fr"]),
        (
            r"unknown image model 'mobilenet_v3_smal'.*mobilenet_v3_small",
            [*EXTRACT, "--image-model", "mobilenet_v3_smal"],
        ),
        (r"unknown weights 'nope'", [*EXTRACT, "--image-weights", "nope"]),
        (r"no such weights|unknown weights", [*EXTRACT, "--image-weights", "nowhere.pth"]),
        (r"cut\.pth.*truncated", [*EXTRACT, "--image-weights", "cut.pth"]),
        (r"'\./nowhere' is not a directory", [*EXTRACT, "--text-model", "./nowhere"]),
        (r"config\.json", [*EXTRACT, "--text-model", "mine"]),
        (r"offline", [*EXTRACT, "--text-model", "bert-base-nowhere", "--offline"]),
        (r"fr=random.*de, en", [*EXTRACT, "--text-model", "fr=random"]),
        (r"--device: 'nope'", [*EXTRACT, "--device", "nope"]),
        (r"--device: 'cuda:99'", [*EXTRACT, "--device", "cuda:99"]),
        (r"--dtype: 'int8' .*bfloat16", [*EXTRACT, "--dtype", "int8"]),
        (r"--pooling: unknown pooling 'median'.*mean, cls", [*EXTRACT, "--pooling", "median"]),
        (r"--name: '\.\./up'", [*EXTRACT, "--name", "../up"]),
        (r"--bits: 0", [*BITS, "--bits", "0"]),
        (r"--bits: -3", [*BITS, "--bits", "-3"]),
        (r"--bits: 99999.*1 to 4096", [*BITS, "--bits", "99999"]),
        (r"--lr: nan", [*BITS, "--lr", "nan"]),
        (r"--lr: inf", [*BITS, "--lr", "inf"]),
        (r"--lr: 0", [*BITS, "--lr", "0"]),
        (r"--lr: -1", [*BITS, "--lr", "-1"]),
        (r"--epochs: 0", [*BITS, "--epochs", "0"]),
        (r"--batch: 0", [*BITS, "--batch", "0"]),
        (r"--hidden: -1", [*BITS, "--hidden", "-1"]),
        (r"--margin: 0", [*BITS, "--margin", "0"]),
        (r"--weight-decay: -1", [*BITS, "--weight-decay", "-1"]),
        (r"--dropout: 1.5", [*BITS, "--dropout", "1.5"]),
        (r"--dropout: nan", [*BITS, "--dropout", "nan"]),
        (r"--input-dropout: -0.1", [*BITS, "--input-dropout", "-0.1"]),
        (r"unknown method 'tripet': did you mean triplet", [*BITS, "--method", "tripet"]),
        (r"'fr'.*de, en", [*BITS, "--lang", "fr"]),
        (r"--device: 'nope'", [*BITS, "--device", "nope"]),
        (r"--encoder: cannot parse 'image': write image=NAME", [*BITS, "--encoder", "image"]),
        (r"by 'vgg' \(there: toy\)", [*BITS, "--encoder", "image=vgg"]),
        (r"no extracted data set 'nope' \(the cache holds toy\)", ["train", "--dataset", "nope"]),
        (r"no extracted data set in this folder: \./nowhere: run cmrhash extract", ["train", "--cache", "nowhere"]),
        (r"no extracted data set.*cmrhash extract", ["eval", "--cache", "nowhere"]),
        (r"no such trained run.*cmrhash train", ["eval", "--runs", "nowhere"]),
        (r"no such trained run with 64 bits \(there: triplet-8\)", ["eval", "--bits", "64"]),
        (r"no such trained run \(there: triplet-8\)", ["eval", "--method", "cca"]),
        (r"unknown method 'tripel': did you mean triplet\?", ["eval", "--method", "tripel"]),
        (
            r"no such trained run with relevance pairs \(there: triplet-8\).*--relevance labels",
            ["eval", "--relevance", "pairs"],
        ),
        (r"unknown relevance 'pair': did you mean pairs", ["eval", "--relevance", "pair"]),
        (r"unknown relevance 'label': did you mean labels", [*BITS, "--relevance", "label"]),
        (r"no features for language 'fr' \(there: de, en\): .* no item has captions in it", ["eval", "--lang", "fr"]),
        (r"--direction: unknown direction 'it2': did you mean .*i2t, t2i, t2t, i2i", ["eval", "--direction", "it2"]),
        (r"unknown metric 'map50'.*map, r@1, r@5, r@10", ["compare", "--metric", "map50"]),
        (r"no features for language 'fr' \(there: de, en\)", ["compare", "--lang", "fr"]),
        (r"no features for language 'fr' \(there: de, en\)", ["compare", "--train-lang", "fr"]),
        (r"a cutoff of 0", ["eval", "--map-at", "0"]),
        (r"a cutoff of -1", ["eval", "--at", "-1"]),
        (r"--map-at-rule: unknown rule 'nope'.*min, R, hits, first", ["eval", "--map-at-rule", "nope"]),
        (r"--ties: unknown order 'lucky'.*expected, optimistic, pessimistic", ["eval", "--ties", "lucky"]),
        (r"--bits: 9{20}.*1 to 4096", [*BITS, "--bits", HUGE]),
        (r"--seed: 9{20}.*0 to 4294967295", [*BITS, "--seed", HUGE]),
        (r"--seed: 9{20}.*0 to 4294967295", [*EXTRACT, "--seed", HUGE]),
        (r"--hidden: 9{20}.*0 to 65536", [*BITS, "--hidden", HUGE]),
        (r"--first-caption: nan.*0 to 1", [*BITS, "--first-caption", "nan"]),
        (r"unknown alignment 'mdm': did you mean mmd", [*BITS, "--method", "acmr", "--alignment", "mdm"]),
        (r"--alignment: method 'triplet' has no alignment: use --method acmr", [*BITS, "--alignment", "mmd"]),
        (r"--encoder: cannot parse '=': write", [*BITS, "--encoder", "="]),
        (r"in 64 bits, got 9{20}", ["eval", "--map-at", HUGE]),
        (r"in 64 bits, got 9{20}", ["eval", "--at", HUGE]),
        (r"with 9{20} bits", ["eval", "--bits", HUGE]),
        (r"no trained run|no such trained run", ["eval", "--seed", HUGE]),
        (r"--seeds: 0", ["compare", "--seeds", "0"]),
        (r"--bits: 0", ["compare", "--bits", "0"]),
        (r"--epochs: 0", ["compare", "--epochs", "0"]),
        (r"unknown method 'tripel': did you mean triplet", ["compare", "--method", "tripel"]),
        (r"unknown path 'eval': choose one of evaluation-16", ["bench", "--path", "eval"]),
        (r"'\.\.' \(the cache holds toy\)", ["eval", "--dataset", ".."]),
        (r"'toy/\.\./toy' \(the cache holds toy\)", ["eval", "--dataset", "toy/../toy"]),
        (r"'\\udcff' \(the cache holds toy\)", ["eval", "--dataset", "\udcff"]),
        (r"--name: '\\udcff' .*: use letters", [*EXTRACT, "--name", "\udcff"]),
        (r"name too long", [*EXTRACT, "--name", "x" * 300]),
        (r"name too long", [*EXTRACT, "--text-model", "x" * 5000]),
        (r"'\\udcff' is neither a directory", [*EXTRACT, "--text-model", "\udcff"]),
        (r"no such weights file: \./mine", [*EXTRACT, "--image-weights", "mine"]),
        (r"needs its files: give --features", ["extract", "--dataset", "features"]),
        (r"--map: 'x' .*: give the file of that array with --features", [*EXTRACT, "--map", "x"]),
        (r"--protocol: unknown protocol 'dcmhh': did you mean dcmh\?", [*EXTRACT, "--protocol", "dcmhh"]),
        (r"no published numbers .* give --query N and --train N; published are", [*EXTRACT, "--protocol", "dcmh"]),
        (r"--query: .*'clip' chooses the items itself", [*EXTRACT, "--protocol", "clip", "--query", "first:3"]),
        (r"--query: '0' names no item", [*EXTRACT, "--query", "0"]),
        (r"--query: 9 items of 8 complete items: \./mine: give a smaller number", [*EXTRACT, "--query", "last:9"]),
        (r"--train: 'nowhere\.npy' is neither a number of items nor a file", [*EXTRACT, "--train", "nowhere.npy"]),
        (r"--lr is used only with --finetune", [*EXTRACT, "--lr", "0.1"]),
        (r"--epochs: 0", [*EXTRACT, "--finetune", "--epochs", "0"]),
        (r"--method: 'cca' has no loss", [*EXTRACT, "--finetune", "--method", "cca"]),
        *((words, [*command, option, ""]) for words, command, option in EMPTY),
    ],
    ids=lambda value: ascii(" ".join(value[-2:]))[:40] if isinstance(value, list) else "",
)
def test_options_that_cannot_be(here, refused, words, args):
    (here / "cut.pth").write_bytes(b"PK\3\4 not all of it")
    refused(USAGE, words, *args)
    assert not (here.parent / "up").exists()


@pytest.mark.faults("bad command line")
@pytest.mark.parametrize(
    "args",
    [
        ["train", "--bits", "many"],
        ["train", "--seed", "-1"],
        ["train", "--nope"],
        ["eval", "--map-at"],
        ["extract", "--max-bad", "2"],
        ["extract", "--image-batch", "0"],
        ["trian"],
        [""],
        ["\udcff"],
        ["eval", "toy"],
        ["train", "--bits"],
        ["train", "--bits", ""],
        ["train", "--bits", "3.5"],
        ["train", "--epochs", "\udcff"],
        ["extract", "--image-batch", HUGE],
        ["extract", "--max-bad", "nan"],
        ["extract", "--root", "a\0b"],
    ],
    ids=lambda args: ascii(" ".join(args)),
)
def test_what_the_parser_refuses(here, capsys, args):
    before = files(here)
    assert run(*args) == USAGE
    error = capsys.readouterr().err
    assert error.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in error
    assert files(here) == before


@pytest.mark.faults("bad command line")
@pytest.mark.parametrize("given", [["--bits", "16,32"], ["--bits=16,32"]])
def test_numbers_joined_by_commas_are_told_apart(here, refused, given):
    refused(USAGE, "--bits: '.*' is not a whole number: repeat the option: --bits 16 --bits 32$", "train", *given)
    assert "repeat" not in refused(USAGE, "--epochs: '1,2'", "train", "--epochs", "1,2")


@pytest.mark.faults("bad command line")
def test_two_data_sets_and_no_choice(here, refused, make_cache):
    make_cache(here / "cache", "other")
    for command in (BITS, ["eval"]):
        refused(USAGE, r"several data sets \(other, toy\).*--dataset", *command)
