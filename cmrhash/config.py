"""Settings of all commands, each with its default and unit. Standard library only.

The command line takes its defaults from here; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmrhash.errors import UsageError, did_you_mean

Progress = Callable[..., None]  # (what, done, total, note="") of a long task, called now and then
CACHE = Path("cache")  # feature files, one folder a data set
RUNS = Path("runs")  # trained heads, one folder a run
SAMPLE_DATASET = "sample"  # the built-in data set, drawn on first use
FEATURES_DATASET = "features"  # ready-made feature files, without photos or texts
DATASETS = (  # names of the readers
    SAMPLE_DATASET,
    "iaprtc12",
    "iaprtc12-lists",
    "pascal",
    "wikipedia",
    "flickr30k",
    "flickr8k",
    "fashion",
    "manifest",
    FEATURES_DATASET,
)
MAX_BITS = 4096  # of a code
MAX_HIDDEN = 1 << 16  # width of a head's hidden layer
MAX_SEED = 2**32 - 1  # what every generator of random numbers takes
MAX_IMAGE_BATCH = 4096  # images a forward pass; beyond a commit's images all the others are padding
RANDOM = "random"  # in place of weights or a model: seeded, untrained
OWN = "own"  # in place of a text model: the ready-made features that come with the data set
CUSTOM = "custom"  # what a feature file says of its weights if an encoder object of the user's own made it
READY = "ready"  # what a feature file says of its weights if no encoder of ours made it


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Data set and encoders -> feature files."""

    dataset: str = SAMPLE_DATASET  # which reader
    root: Path | None = None  # the data set's folder; the sample is drawn below the cache
    name: str | None = None  # folder below the cache; None: the reader's name
    cache: Path = CACHE
    langs: tuple[str, ...] = ()  # languages to extract; empty: all that the data set has
    image_model: str = "resnet18"  # any torchvision classifier, or a Faster R-CNN for its regions
    image_weights: str | None = None  # "default", an enum's name, a file, "random"; None: random for the sample
    # "[LANG=]MODEL": a transformer's directory or id, "bow", "word2vec", a file of word vectors, RANDOM or OWN; empty:
    text_models: tuple[str, ...] = ()  # TEXT_MODELS, random for the sample
    pooling: str | None = None  # how tokens become one text vector; None: the mean, where a model has a choice
    vocabulary: int = 2912  # words of a bag of words; as in the papers on hashing IAPR TC-12
    max_length: int = 512  # word pieces a caption; the model's own limit holds as well
    image_batch: int = 32  # images a forward pass
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", ...
    dtype: str = "auto"  # compute type of the encoders: "auto", "float32", "bfloat16", "float16"
    seed: int = 0  # draws roles that the data set does not bring, and untrained encoders
    features: tuple[Path, ...] = ()  # .mat, .h5, .npz or .npy of ready-made features, in place of encoders
    maps: tuple[str, ...] = ()  # "ROLE[.PART]=ARRAY": what the arrays of these files are; empty: by their names
    shard: str | None = None  # "3/8": the third of eight processes, each of which does its part; None: all of it
    max_bad: float = 0.01  # share of images that may be unreadable before the exit code says so
    offline: bool = False  # never ask the network for weights
    overwrite: bool = False  # replace files that another recipe made


# Language-matched text encoders; any other language needs --text-model.
TEXT_MODELS = {"en": "bert-base-uncased", "de": "bert-base-german-cased"}


# What closes the modality gap in method acmr, and the name of the method that does.
ALIGNMENTS = {
    "adversarial": "acmr",
    "mmd": "acmr-mmd",
    "coral": "acmr-coral",
    "correlation": "acmr-correlation",
    "none": "acmr-label-triplet",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Cached features -> one image head and a text head per language in one Hamming space."""

    bits: int = 32  # code length
    method: str = "triplet"  # a name out of methods.METHODS
    seed: int = 0  # initial weights, order of batches, choice of captions, dropout
    langs: tuple[str, ...] = ()  # languages to train; empty: all that are extracted
    relevance: str | None = None  # who is relevant to whom: "labels" or "pairs"; None: the data set's own
    epochs: int = 60  # passes over the train items
    batch: int = 512  # items a step (halved until a pass has at least 4 steps)
    lr: float = 2e-3  # peak of the one-cycle schedule; times sqrt(halved / batch) where the batch was halved
    weight_decay: float = 0.01  # AdamW
    hidden: int = 1024  # width of the hidden layer; 0: a linear head
    dropout: float = 0.2  # share of hidden units dropped in training
    input_dropout: float = 0.1  # share of features dropped in training
    first_caption: float = 0.5  # share of steps that an item's first caption, the one that is scored, is sure of
    margin: float = 0.25  # triplet margin as a share of the bits, on squared L2 distances of tanh embeddings
    device: str = "auto"
    checkpoint_seconds: float = 20.0  # how often an unfinished run is saved


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Encoders -> the same encoders, trained with a method's losses through hash heads that are thrown away."""

    method: str = "tie-ap"  # a name out of methods.METHODS, any without a closed form; this one needs fewest epochs
    bits: int = 32  # code length of the thrown-away heads; codes of any length are trained on the features later
    epochs: int = 25  # passes over the train items; on the sample val mAP is .880 after 8, .925 after 25
    batch: int = 32  # items a step (halved until a pass has at least 4 steps)
    lr: float = 4e-4  # peak of the one-cycle schedule, for the heads; scaled with a halved batch as in TrainConfig
    image_lr: float | None = None  # that of the image encoder; 0: it stays as it is; None: lr, or for trained weights
    text_lr: float | None = None  # ... of the text encoders                              lr * TRAINED_SHARE
    weight_decay: float = 0.01  # AdamW
    clip: float = 1.0  # L2 norm that the gradients of a step are scaled down to
    seed: int = 0  # weights of the heads, order of batches, choice of captions, dropout
    checkpoint_seconds: float = 60.0  # how often an unfinished run is saved, at the end of an epoch


TRAINED_SHARE = 0.1  # of the heads' rate, for encoders whose weights already know something


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Codes -> distances -> metrics."""

    bits: tuple[int, ...] = ()  # empty: every trained length
    langs: tuple[str, ...] = ()  # empty: every language that a run can score
    methods: tuple[str, ...] = ()  # empty: every trained method
    seeds: tuple[int, ...] = ()  # empty: every trained seed
    relevance: str | None = None  # "labels" or "pairs", of the runs as of the scores; None: the data set's own
    directions: tuple[str, ...] = ("i2t", "t2i")  # out of "i2t", "t2i", "t2t", "i2i"
    map_at: int | None = None  # cut of mAP@k; None: the whole database
    map_at_rule: str = "min"  # what mAP@k divides by, see metrics.average_precision
    ties: str = "expected"  # "expected", "optimistic" or "pessimistic"
    at: tuple[int, ...] = ()  # cuts of P@k, R@k, nDCG@k and hit@k; empty: CUTS of the relevance


CUTS = {"labels": (1, 5, 10, 50), "pairs": (1, 5, 10)}  # by relevance; R@1, R@5 and R@10 are the customs of Flickr30k


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A sentence, a photo or an item -> what lies near it in the database."""

    lang: str | None = None  # of the sentence and of found captions; None: told by its words; without one, the first
    to: str | None = None  # "image", "text" or "both"; None: the other modality
    by: str = "image"  # of an item: "image", or "text" for its first caption
    k: int = 10  # how many to find
    image_weights: str | None = None  # where the encoders' weights are now; None: where they were at extraction
    text_models: tuple[str, ...] = ()  # "[LANG=]DIR", likewise
    device: str = "auto"
    offline: bool = False  # never ask the network for weights
    store: str | None = None  # URL of a store to search in; None: the run's own index
    probes: int | None = None  # how much of a store's approximate index is looked at, see PROBES; 0: an exact search
    among: str = "database"  # what is searched: "database", or "all" items that have codes


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The database codes of a run -> collections in a store, where others search them."""

    store: str | None = None  # faiss:DIR, postgresql://..., milvus+http://... or milvus:FILE; must be given
    approximate: bool | None = None  # an approximate index; None: in a Faiss folder beyond IVF_ROWS codes
    among: str = "database"  # whose codes: of the "database", or of "all" items


IVF_ROWS = 4_000_000  # codes: an exhaustive search of a Faiss folder takes about 4 ms of one core for them
PROBES = {"faiss": 16, "postgresql": 100, "milvus": 16}  # nprobe of IVF: lists; ef_search of HNSW: candidates
BATCH_ROWS = 1 << 16  # codes that are on their way to a store at once
MAX_KEY = 1024  # bytes of a key in UTF-8


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run -> a folder that others can encode with."""

    with_encoders: bool = False  # put in public encoders too, which otherwise are named
    onnx: bool = False  # write ONNX graphs beside
    image_weights: str | None = None  # where the encoders' weights are now; None: where they were at extraction
    text_models: tuple[str, ...] = ()  # "[LANG=]DIR", likewise
    device: str = "auto"
    offline: bool = False  # never ask the network for weights
    push: str | None = None  # "owner/name": upload it to the model hub afterwards
    private: bool = False  # whether the repository is, if it is made for it


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A run -> a page in the browser."""

    host: str = "127.0.0.1"  # address to listen on; any but loopback needs i_know, and then a token
    port: int = 8000  # 0: any free one
    i_know: bool = False  # that others on the network can reach the page
    k: int = 12  # results that the page asks for at first
    image_weights: str | None = None  # as in SearchConfig
    text_models: tuple[str, ...] = ()
    device: str = "auto"
    offline: bool = False
    among: str = "database"
    max_k: int = 200  # results that may be asked for
    max_text: int = 2000  # characters of a sentence
    max_body: int = 10 * 10**6  # bytes of an upload
    body_seconds: float = 10.0  # in which an upload must be there
    queue: int = 8  # questions that may wait while one is answered
    thumb_bytes: int = 64 * 2**20  # of thumbnails kept in memory


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A grid of runs -> one table."""

    methods: tuple[str, ...] = ("triplet",)
    bits: tuple[int, ...] = (16, 32, 48, 64)
    langs: tuple[str, ...] = ()  # languages to show; empty: all that the runs can score
    seeds: int = 3  # seeds a cell, from 0
    metric: str | None = None  # of a cell: "map", "r@1", "r@5" or "r@10"; None: map by labels, r@1 by pairs
    out: Path | None = None  # folder of the table; None: beside the runs, where a report looks for it


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Trained runs -> pictures."""

    kinds: tuple[str, ...] = ()  # out of PLOTS; empty: all that the runs allow
    bits: tuple[int, ...] = ()  # empty: every trained length
    methods: tuple[str, ...] = ()  # empty: every trained method
    seeds: tuple[int, ...] = ()  # empty: every trained seed
    langs: tuple[str, ...] = ()  # empty: every language that a run can score
    relevance: str | None = None  # as in EvalConfig
    formats: tuple[str, ...] = ("png", "svg")  # files of each picture
    items: int = 1000  # query items of a t-SNE map, at most; drawn by the run's seed
    out: Path | None = None  # folder of the pictures; None: "plots" beside the runs


PLOTS = {
    "pr": "precision and recall by Hamming radius",
    "bits": "mAP (by pairs R@1) by code length, mean and spread over seeds",
    "distances": "Hamming distances of relevant and irrelevant pairs",
    "tsne": "t-SNE map of images and texts",
    "training": "loss, val mAP and collapse watch by epoch",
}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A run, or a comparison, -> one HTML file."""

    run: Path | None = None  # folder of the run; None: the comparison beside the runs, or else the best run on val
    langs: tuple[str, ...] = ()  # empty: every language that a run can score
    examples: int = 2  # queries shown of the best, the median and the worst, each
    top: int = 5  # answers shown of each
    thumbnail: int = 112  # longer side of a photo, pixels
    out: Path | None = None  # the file; None: "report.html" in the folder of the run, or beside the runs


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What ``cache verify`` looks at besides the digests of our own files."""

    sources: bool = True  # photos and captions, against what the features were made from


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What ``cache prune`` takes besides what no command would use again."""

    unfinished: bool = False  # extractions, trainings and fine-tunings that the same command would go on with
    gone: bool = False  # runs whose features are gone, though extracting these again would make them good
    yes: bool = False  # delete, and not only say what would be deleted


LEFT_BEHIND = 3600.0  # seconds that a partial file without a lock lies untouched before it counts as left behind


def aligned(method: str, alignment: str | None) -> str:
    """Name of ``method`` with that alignment, one of ALIGNMENTS; raises UsageError for any method but "acmr"."""
    if alignment is None:
        return method
    if alignment not in ALIGNMENTS:
        fix = f"{did_you_mean(alignment, ALIGNMENTS)} choose one of {', '.join(ALIGNMENTS)}"
        raise UsageError(f"unknown alignment '{alignment}'", None, fix)
    if method != ALIGNMENTS["adversarial"]:
        raise UsageError(f"method '{method}' has no alignment", None, 'use `method="acmr"`', option="alignment")
    return ALIGNMENTS[alignment]


def check_train(config: TrainConfig) -> None:
    """Raise UsageError for a number that training cannot use."""
    _check_range("bits", config.bits, 1, MAX_BITS)
    _check_range("seed", config.seed, 0, MAX_SEED)
    for name in ("epochs", "batch", "lr", "margin", "weight_decay", "hidden", "dropout", "input_dropout"):
        value, zero = getattr(config, name), name in ("weight_decay", "hidden", "dropout", "input_dropout")
        _check_number(name, value, zero)
        if "dropout" in name and value >= 1:
            raise UsageError(f"{value} is out of range", None, "give a share below 1", option=name)
    _check_range("hidden", config.hidden, 0, MAX_HIDDEN)
    if not 0 <= config.first_caption <= 1:
        what = f"{config.first_caption} is out of range"
        raise UsageError(what, None, "give a share from 0 to 1", option="first_caption")


def check_finetune(config: FinetuneConfig) -> None:
    """Raise UsageError for a number that fine-tuning cannot use."""
    _check_range("bits", config.bits, 1, MAX_BITS)
    _check_range("seed", config.seed, 0, MAX_SEED)
    for name in ("epochs", "batch", "lr", "clip"):
        _check_number(name, getattr(config, name), zero=False)
    for name in ("weight_decay", "image_lr", "text_lr"):
        value = getattr(config, name)
        _check_number(name, 0 if value is None else value, zero=True)
    if config.image_lr == config.text_lr == 0:
        raise UsageError("`image_lr=0` and `text_lr=0` leave nothing to tune", None, "leave one of them out")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{value} is out of range", None, f"give a whole number from {least} to {most}", option=name)


def _check_number(name: str, value: float, zero: bool) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        fix = f"give a finite number {'from' if zero else 'above'} 0"
        raise UsageError(f"{value} is out of range", None, fix, option=name)
