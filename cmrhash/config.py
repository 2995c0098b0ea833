"""Settings of all commands, each with its default and unit.

The command line takes its defaults from here; a test compares the two. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[..., None]  # called with (task, done, total, note="") during a long task
GRID = "grid"  # the task that counts several trainings, whose note says how long they will take
CACHE, RUNS = Path("cache"), Path("runs")  # feature files, a folder per data set; trained heads, a folder per run
SAMPLE_DATASET = "sample"  # the built-in data set, drawn on first use
FEATURES_DATASET = "features"  # precomputed feature files, without photos or texts
TABLE_DATASET = "table"  # a table beside photos
TARS_DATASET = "webdataset"  # photos in tars
LISTS_DATASET = "mat-lists"  # lists in MATLAB files, with photos anywhere
DATASETS = (  # names of the readers in data/catalog.py, those of anybody's data first
    *(SAMPLE_DATASET, "folder", TABLE_DATASET, "manifest", "imagefolder", TARS_DATASET),
    *("iaprtc12", "iaprtc12-lists", "pascal", "wikipedia", "flickr30k", "flickr8k", "fashion"),
    *("mirflickr", "nuswide", "coco", LISTS_DATASET, FEATURES_DATASET),
)
LABELS_FROM = ("folder",)  # values of labels_from
PROTOCOLS = ("dcmh", "unsup", "clip", "ucch")  # published splits, out of data/published.py
MAX_BITS = 4096  # longest code
MAX_HIDDEN = 1 << 16  # width of a head's hidden layer
MAX_COUNT = 10**9  # most epochs, and items of a batch
MAX_NUMBER = 1e12  # largest learning rate, margin, ...: their squares must fit into float32
MAX_SEED = 2**32 - 1  # largest seed that all random number generators accept
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 1024  # pixels of a side
MAX_IMAGE_BATCH = 4096  # images per forward pass; more than one commit's images would only add padding
RANDOM = "random"  # as weights or model: untrained, drawn from the seed
OWN = "own"  # as text model: the precomputed features that come with the data set
LAYERS = ("projection", "pooled", "cls", "mean")  # of a transformers tower, which one gives the features
AUTO, TORCH, ONNX = RUNTIMES = ("auto", "torch", "onnx")  # what computes the encoders
STORE_DTYPE, STORE_DTYPES = "store_dtype", ("float32", "float16")  # field of a recipe, and its values
KEEP, DROP = ADDED = ("keep", "drop")  # what an extraction does with the items that add brought
CUSTOM = "custom"  # weights field of a feature file that an encoder object of the user made
READY = "ready"  # weights field of a feature file that no cmrhash encoder made


def at_home(path: Path) -> Path:
    """The path with the home folder for ``~`` at its start; the path itself where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Feature extraction: a data set and encoders -> feature files."""

    dataset: str = SAMPLE_DATASET  # name of the reader, out of DATASETS
    root: Path | None = None  # the data set's folder, a table or a tar; the sample is drawn below the cache
    images: Path | None = None  # folder of the photos that dataset "mat-lists" names; None: root
    name: str | None = None  # folder name below the cache; None: the reader's name
    cache: Path = CACHE
    langs: tuple[str, ...] = ()  # languages to extract; empty: all languages of the data set
    # directory or id of a dual encoder (CLIP, ...), or "open_clip:ARCH/PRETRAINED": image_model and text_models in one
    model: str | None = None
    # a torchvision classifier, a Faster R-CNN for region features, a directory or id of a transformers model,
    # "timm:NAME" or "open_clip:ARCH/PRETRAINED"
    image_model: str = "resnet18"
    image_weights: str | None = None  # "default", a torchvision name, a file, "random"; None: random for the sample
    image_size: int | None = None  # side of a prepared photo in pixels, MIN_ to MAX_IMAGE_SIZE; None: the model's own
    # modules of a torchvision or timm network joined by "+", whose averaged feature maps are the features
    image_layers: str | None = None
    mirror: bool = False  # image features are the mean of those of the photo and of its mirror image
    # "[LANG=]MODEL": a transformer's directory or id, "bow", "word2vec", a file of word vectors, RANDOM or OWN;
    # empty: TEXT_MODELS, or random for the sample
    text_models: tuple[str, ...] = ()
    layer: str | None = None  # of a transformers tower, out of LAYERS; None: projection, else pooled, else cls
    pooling: str | None = None  # how token vectors become one text vector; None: the model's default
    prompt: str | None = None  # name of a prompt of a sentence-transformers directory; None: its default one
    # bag of words: its size (as in the hashing papers on IAPR TC-12), or a file of its words, one per line
    vocabulary: int | Path = 2912
    max_length: int = 512  # word pieces per caption; the model may allow fewer
    image_batch: int = 32  # images per forward pass
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", ...
    dtype: str = "auto"  # compute dtype of the encoders: "auto", "float32", "bfloat16", "float16"
    runtime: str = AUTO  # what computes the encoders: "auto", "torch", or "onnx" (ONNX Runtime, float32, on the CPU)
    store_dtype: str = STORE_DTYPES[0]  # dtype of the features on disk, out of STORE_DTYPES
    seed: int = 0  # draws missing roles and the weights of untrained encoders
    follow_links: bool = False  # read photos and folders outside the root through its symbolic links
    protocol: str | None = None  # published split, out of PROTOCOLS; None: by the next two, its own, or drawn
    query_items: str | None = None  # "200" (drawn), "first:200", "last:200", or a file of ids or row numbers
    train_items: str | None = None  # train items, in the same way
    features: tuple[Path, ...] = ()  # .mat, .h5, .npz, .npy, .safetensors files of features, instead of encoders
    maps: tuple[str, ...] = ()  # "ROLE[.PART]=ARRAY", "ROLE=COLUMN" of a table; empty: by their names
    labels: tuple[str, ...] = ()  # columns of a table that are the labels; empty: the reader's choice
    labels_from: str | None = None  # "folder": the name of a photo's folder is its label
    ids: Path | None = None  # an id per line, or an array of strings, for dataset "features"
    captions: tuple[str, ...] = ()  # "[LANG=]FILE": one or several lines per item, for dataset "features"
    added: str | None = None  # items that add brought and the source lacks, out of ADDED; None: refuse to lose them
    shard: str | None = None  # "3/8": do the third of eight parts, one part per process; None: do all
    max_bad: float = 0.01  # largest share of unreadable images before the exit code reports failure
    offline: bool = False  # never download weights
    overwrite: bool = False  # replace files that were made with another recipe


# Default text encoder per language; any other language needs --text-model.
QUERY_LANGUAGE = "en"  # of queries to photos without captions
TEXT_MODELS = {"en": "bert-base-uncased", "de": "bert-base-german-cased"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "npu", "meta")  # without their numbers


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training: features -> image and text heads in one Hamming space."""

    bits: int = 32  # code length
    method: str = "triplet"  # name of a method, out of methods.METHODS, or "best"
    seed: int = 0  # initial weights, batch order, caption choice, dropout
    langs: tuple[str, ...] = ()  # languages to train; empty: all extracted languages
    relevance: str | None = None  # relevance of an item to a query: "labels" or "pairs"; None: the data set's own
    epochs: int = 60  # passes over the train items
    batch: int = 512  # items per step (halved until a pass has at least 4 steps)
    lr: float = 2e-3  # peak of the one-cycle schedule; times sqrt(halved / batch) if the batch was halved
    image_lr: float | None = None  # of the image head, likewise; 0: untrained; None: lr
    text_lr: float | None = None  # of the text heads
    schedule: str = "one-cycle"  # of the learning rates, out of SCHEDULES
    weight_decay: float = 0.01  # AdamW; 0: Adam
    ema: float = 0.0  # share that a moving average of the weights keeps each step; 0: the last weights
    hidden: int = 1024  # width of the hidden layer; 0: a linear head
    dropout: float = 0.2  # share of hidden units dropped in training
    input_dropout: float = 0.1  # share of features dropped in training
    first_caption: float = 0.5  # share of steps that surely use the item's first caption, which is the scored one
    margin: float = 0.25  # triplet margin as a share of the bits, on squared L2 distances of tanh embeddings
    memory: int = 0  # items of earlier steps with which pairwise losses compare a batch, too; more than all: all
    drop_near_duplicates: bool = False  # leave out train items whose photo is (nearly) a query's
    noise: float = 0.0  # share of train items with a wrong label in the place of one of theirs, for experiments
    direction: str | None = None  # out of ACROSS: the only search direction to train; None: both
    device: str = "auto"
    checkpoint_seconds: float = 20.0  # how often an unfinished run is saved


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning: encoders -> encoders trained with a method's losses through temporary hash heads."""

    method: str = "tie-ap"  # any method without a closed form; this one needs the fewest epochs
    bits: int = 32  # code length of the temporary heads; later training may use any length
    epochs: int = 25  # passes over the train items; the sample's val mAP is .880 after 8, .925 after 25
    batch: int = 32  # items per step (halved until a pass has at least 4 steps)
    lr: float = 4e-4  # peak of the heads' one-cycle schedule; scaled with a halved batch as in TrainConfig
    # peak of an encoder's schedule; 0: frozen; None: lr for untrained weights, lr * TRAINED_SHARE for trained ones
    image_lr: float | None = None
    text_lr: float | None = None
    unfreeze: int | None = None  # last blocks of each encoder to train; None: all of it
    weight_decay: float = 0.01  # AdamW
    margin: float | None = None  # as in TrainConfig, of a method that has one; None: TrainConfig's
    clip: float = 1.0  # largest L2 norm of a step's gradient
    seed: int = 0  # weights of the heads, batch order, caption choice, dropout
    checkpoint_seconds: float = 60.0  # how often an unfinished run is saved, at the end of an epoch


SCHEDULES = ("one-cycle", "constant")
ACROSS = ("i2t", "t2i")  # search directions of a training: texts by images, images by texts
TRAINED_SHARE = 0.1  # learning rate of pretrained encoders, as a share of the heads'


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation: codes -> distances -> metrics."""

    bits: tuple[int, ...] = ()  # empty: every trained length
    langs: tuple[str, ...] = ()  # empty: every language that the runs can score
    methods: tuple[str, ...] = ()  # empty: every trained method
    seeds: tuple[int, ...] = ()  # empty: every trained seed
    relevance: str | None = None  # "labels" or "pairs", for choosing runs and for scoring; None: the data set's own
    trained_by: str | None = None  # choose runs that were trained by this relevance; None: by that of the scoring
    directions: tuple[str, ...] = ("i2t", "t2i")  # any of "i2t", "t2i", "t2t", "i2i"
    map_at: int | None = None  # cutoff k of mAP@k; None: the whole database
    map_at_rule: str = "min"  # denominator of mAP@k, see metrics.average_precision
    rank: str = "hamming"  # order of results: "hamming", "asymmetric" or "rerank:N", see retrieval.ranking.Rank
    ties: str = "expected"  # "expected", "optimistic" or "pessimistic"
    at: tuple[int, ...] = ()  # cutoffs of P@k, R@k, nDCG@k and hit@k; empty: CUTS of the relevance


CUTS = {"labels": (1, 5, 10, 50), "pairs": (1, 5, 10)}  # by relevance; Flickr30k is reported by R@1, R@5, R@10


@dataclass(frozen=True, kw_only=True)
class EncoderPlaces:
    """Encoders of features that exist, opened again."""

    image_weights: str | None = None  # new location of the encoder's weights; None: as at extraction
    text_models: tuple[str, ...] = ()  # "[LANG=]DIR", new locations of the text models
    device: str = "auto"
    offline: bool = False  # never download weights


@dataclass(frozen=True, kw_only=True)
class SearchConfig(EncoderPlaces):
    """Search: a sentence, a photo or an item -> its nearest neighbours in the database."""

    lang: str | None = None  # of the query and the captions; None: detected; without a sentence: the first
    to: str | None = None  # "image", "text" or "both"; None: the other modality
    by: str = "image"  # view of a query item: "image", or "text" for its first caption
    k: int | None = None  # number of results; None: 10, or all within the radius
    radius: int | None = None  # only results within so many bits
    where: tuple[str, ...] = ()  # conditions on the items, all of which must hold, see search.filters
    store: str | None = None  # URL of a store to search in; None: the run's own index
    probes: int | None = None  # search effort in a store's approximate index, see PROBES; 0: exact search
    among: str | None = None  # items to search: "all" with codes, or the "database" of eval; None: all, or the store's
    rank: str | None = None  # see retrieval.ranking.Rank; None: by embeddings


@dataclass(frozen=True, kw_only=True)
class IndexConfig(EncoderPlaces):
    """Publishing: the database codes of a run -> collections of a store, or the codes of another collection."""

    store: str | None = None  # one of STORES; None: with_run alone
    with_run: str | None = None  # trained or exported run whose encoders and heads hash another collection
    approximate: bool | None = None  # build an approximate index; None: for Faiss beyond IVF_ROWS codes
    embeddings: bool = False  # keep the embeddings beside the codes, so that the store itself can rerank (PostgreSQL)
    among: str = "all"  # items to publish: "all" with codes, or the "database" of eval


# URLs of the kinds of stores in search/stores
STORES = "faiss:DIR, postgresql://USER@HOST/DATABASE, milvus+http://HOST:PORT or milvus:FILE"
IVF_ROWS = 4_000_000  # codes; Faiss searches them exhaustively in about 4 ms on one core
PROBES = {"faiss": 16, "postgresql": 100, "milvus": 16}  # IVF: nprobe (lists); HNSW: ef_search (candidates)
BATCH_ROWS = 1 << 16  # codes per batch sent to a store
MAX_KEY = 1024  # bytes of the longest key, in UTF-8


@dataclass(frozen=True, kw_only=True)
class GrowConfig(EncoderPlaces):
    """Growth of a collection: items added or removed, with features, codes and stores brought up to date."""

    stores: tuple[str, ...] = ()  # URLs of the stores whose collections of its runs follow
    prefix: str = ""  # text before the ids of added items


@dataclass(frozen=True, kw_only=True)
class ExportConfig(EncoderPlaces):
    """Export: a run -> a folder with which others can encode."""

    with_encoders: bool = False  # bundle public encoder weights instead of referencing them
    onnx: bool = False  # also write ONNX graphs
    push: str | None = None  # "owner/name" of the model hub repository to upload to
    private: bool = False  # create that repository as a private one


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EncoderPlaces):
    """Web server: a run -> a search page in the browser."""

    host: str = "127.0.0.1"  # address to listen on; other than loopback needs i_know and a token
    port: int = 8000  # 0: any free port
    i_know: bool = False  # confirms that others on the network may reach the page
    public_url: str | None = None  # address of the page behind a proxy; None: it is reached directly
    k: int = 24  # results that the page shows at first
    among: str | None = None
    rank: str | None = None  # as in SearchConfig
    max_k: int = 200  # most results per query
    max_depth: int = 2000  # most results that "Show more" reaches
    max_runs: int = 4  # most runs that are open at the same time
    max_text: int = 2000  # most characters per sentence
    max_body: int = 10 * 10**6  # most bytes per upload
    max_pixels: int = 25 * 10**6  # most pixels of an upload; a larger JPEG is decoded at a smaller size
    body_seconds: float = 10.0  # time limit of an upload
    max_photo: int = 64 * 10**6  # most bytes of an original photo that is sent
    uploads: int = 32  # uploads in memory at the same time
    uploads_each: int = 8  # of them, from one address; no limit behind a proxy, which sends all from its own
    kept_photos: int = 200  # most uploaded photos that are kept, so that their address stays valid
    kept_bytes: int = 128 * 2**20  # most bytes of them
    queue: int = 250  # queries that may wait while one is answered
    thumb_bytes: int = 64 * 2**20  # most bytes of thumbnails in memory


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Comparison: a grid of runs -> one table."""

    methods: tuple[str, ...] = ("triplet",)
    bits: tuple[int, ...] = (16, 32, 48, 64)
    langs: tuple[str, ...] = ()  # languages to show; empty: every language that the runs can score
    seeds: int = 3  # seeds per cell, counted from 0
    trained_by: str | None = None  # relevance of the training, if another than that of the scoring
    metric: str | None = None  # "map", "r@1", "r@5" or "r@10"; None: map for labels, r@1 for pairs
    against: str | None = None  # method that the others are tested against
    format: str = "text"  # "text", or "latex" for a paper: also writes compare.tex
    jobs: int | None = None  # trainings at a time, in processes of one thread; None: one by one, with all threads
    out: Path | None = None  # folder of the table; None: the folder of the runs, where a report finds it


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Search for settings: values to try -> the setting with the best val mAP."""

    values: tuple[str, ...] = ()  # "NAME=VALUE[,VALUE...]" or "NAME=LOW..HIGH", fields of TrainConfig
    samples: int | None = None  # settings that are drawn; None: all combinations
    seeds: int = 1  # seeds per setting, counted from 0
    jobs: int | None = None  # as in CompareConfig
    out: Path | None = None  # folder of the runs and the table; None: "sweep" in the folder of the runs


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Plots: trained runs -> figures."""

    kinds: tuple[str, ...] = ()  # any of PLOTS; empty: all that the runs allow
    bits: tuple[int, ...] = ()  # empty: every trained length
    methods: tuple[str, ...] = ()  # empty: every trained method
    seeds: tuple[int, ...] = ()  # empty: every trained seed
    langs: tuple[str, ...] = ()  # empty: every language that the runs can score
    relevance: str | None = None  # as in EvalConfig
    formats: tuple[str, ...] = ("png", "svg")  # file formats of each figure: png, svg or pdf
    size: str | None = None  # width: "column", "page" or centimetres; None: as wide as its panels
    title: bool = True  # with a title and the protocol; without them for a paper, whose caption says them
    items: int = 1000  # most query items in a t-SNE map; drawn with the run's seed
    out: Path | None = None  # folder of the figures; None: "plots" in the folder of the runs


PLOTS = {
    "pr": "precision and recall by Hamming radius",
    "pr-rank": "precision and recall by rank",
    "topn": "precision among the first N results",
    "bits": "mAP (by pairs R@1) by code length, mean and spread over seeds",
    "seen": "mAP among unseen against seen database items, mean over seeds",
    "distances": "Hamming distances of relevant and irrelevant pairs",
    "tsne": "t-SNE map of images and texts",
    "training": "loss, val mAP and collapse watch by epoch",
}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Report: a run or a comparison -> one HTML file."""

    run: Path | None = None  # folder of the run; None: the comparison if there is one, else the best run on val
    langs: tuple[str, ...] = ()  # empty: every language that a run can score
    examples: int = 2  # queries shown per group (best, median, worst)
    top: int = 5  # results shown per query
    thumbnail: int = 112  # longer side of a photo, pixels
    out: Path | None = None  # the file; None: "report.html" in the folder of the run or of the runs


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Scope of ``cache verify``, which always checks the digests of cmrhash's own files."""

    sources: bool = True  # compare photos and captions with those that the features were made from


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Scope of ``cache prune``, which always selects files that no command would use again."""

    unfinished: bool = False  # also unfinished extractions, trainings and fine-tunings, which a rerun would resume
    gone: bool = False  # also runs without features, which a new extraction would make usable again
    yes: bool = False  # delete the files; otherwise only list them


LEFT_BEHIND = 3600.0  # seconds after which an unlocked, unchanged partial file counts as abandoned
