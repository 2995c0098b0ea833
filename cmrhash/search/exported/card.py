"""Model card of an exported run: Markdown with YAML for model hubs. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cmrhash.config import RANDOM
from cmrhash.data.cleaning import shown
from cmrhash.data.view import View, languages_of
from cmrhash.training.runs import Run

TAGS = ("cross-modal-hashing", "cross-modal-retrieval", "image-text-retrieval", "hashing", "binary-codes")
SAYS = (
    "queries",
    "database",
    "captions",
    "relevance",
    "metric",
    "ties",
    "epoch",
    "split",
)  # shown of the protocol


def card(config: Mapping[str, Any], run: Run, metrics: Mapping[str, Any] | None, former: bool = False) -> str:
    """Write the text of an export's README.md.

    config: of the export; metrics: latest saved scores of the run, or None; former: the collection has changed since
    they were measured. The author fills in the licence. No hub has a task for such models, so the card names none.
    """
    langs = languages_of(map(View, config["views"]))
    parts = [
        _front_matter(langs),
        f"# {_plain(config['dataset'])}: {config['method']}, {config['bits']} bits",
        _purpose(config, langs),
        _use(config, langs),
        _training(config, run),
        _encoders(config),
        _figures(run, metrics, former),
        "## Limits\n\nThe database does not travel with it: it searches among codes that you give. It knows what "
        "its data set showed it; the terms of that data set and of the encoders hold beside those of the heads.",
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(config: Mapping[str, Any], langs: list[str]) -> str:
    if not langs:
        return (
            f"Encodes photos as binary codes of {config['bits']} bits: photos that resemble each other lie few bits "
            "apart, so that photos find photos."
        )
    spoken = ", ".join(_spoken(config, lang) for lang in langs)
    return (
        f"Encodes photos and sentences ({spoken}) as binary codes of {config['bits']} bits in one Hamming space: "
        "what belongs together lies few bits apart, so that texts find images and images find texts."
    )


def _spoken(config: Mapping[str, Any], lang: str) -> str:
    """Language, with its head's language if borrowed."""
    head = View(config["views"][View.text(lang)]).lang
    return lang if head == lang else f"{lang} by the head of {head}, which saw no {lang}"


def _front_matter(langs: list[str]) -> str:
    spoken = [lang for lang in langs if re.fullmatch(r"[a-z]{2,3}", lang)]
    lines = ["---", "# license: to be chosen by the author, e.g. mit", "library_name: cmrhash"]
    lines += ["language:", *(f'- "{lang}"' for lang in spoken)] if spoken else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in TAGS), "---"])


def _use(config: Mapping[str, Any], langs: list[str]) -> str:
    role = ', role="database"' if "rows" in config["head"] else ""  # queries have codes of their own
    lines = [
        "import cmrhash",
        'hasher = cmrhash.from_pretrained("FOLDER or owner/name")',
        f'codes = hasher.encode_image(["1.jpg", "2.jpg"]{role})  # (2, ceil(bits / 8)) uint8',
    ]
    if langs:
        lines += [
            f'distances, rows = hasher.search("...", codes, lang="{langs[0]}", k=2)  # nearest first, in bits',
            f'hasher.embed_text(["..."], lang="{langs[0]}")  # (1, bits) float32; the signs are the code',
        ]
    else:
        lines.append('hasher.embed_image(["1.jpg"])  # (1, bits) float32; the signs are the code')
    away = [View(view) for view, e in config["encoders"].items() if not e["part"] and not e["source"]]
    texts = ", ".join(f'"{view.lang}": "DIR"' for view in away if not view.is_image)
    how = ['image_weights="FILE"'] * any(view.is_image for view in away) + [f"text_models={{{texts}}}"] * bool(texts)
    note = f"\n\nWeights that do not travel: give from_pretrained {' and '.join(how)}." if away else ""
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```" + note


def _training(config: Mapping[str, Any], run: Run) -> str:
    outcome = run.outcome
    alone = _of_photos_alone(run)
    shares = "shares a label" if config["relevance"] == "labels" else "the counterpart of the item itself"
    chosen = f", {outcome.epochs} epochs, epoch {outcome.best_epoch + 1} chosen on {outcome.chosen_on}"
    lines = [
        f"- data set: {_plain(config['dataset'])}, {run.train_items} {'photos' if alone else 'items'} trained on",
        f"- method: {config['method']} ({config['source']})",
        *([] if alone else [f"- relevant: {shares}", f"- languages of the training: {', '.join(run.langs)}"]),
        f"- seed {run.seed}{chosen if outcome.epochs > 1 else ''}",
        f"- made with cmrhash {config['cmrhash']}",
    ]
    if outcome.val_map_mean is not None:
        lines.insert(-1, f"- val mAP {outcome.val_map_mean:.3f}, mean over languages and directions")
    return "## Training\n\n" + "\n".join(lines)


def _encoders(config: Mapping[str, Any]) -> str:
    lines = ["| view | encoder | features | weights | sha256 of the weights | where |", "|---|---|---|---|---|---|"]
    for view, entry in config["encoders"].items():
        recipe = entry["recipe"]
        where = entry["part"] or (entry["source"] and f"`{entry['source']}`") or "not with it"
        if recipe["weights"] == RANDOM and not entry["part"]:
            where = f"drawn from seed {recipe['weights_seed']}"
        digest = recipe["weights_sha256"][:12]
        cells = (view, _plain(recipe["encoder"]), str(entry["dim"]), recipe["weights"], digest, where)
        lines.append(f"| {' | '.join(cells)} |")
    untrained = [view for view, entry in config["encoders"].items() if entry["recipe"]["weights"] == RANDOM]
    warning = f"\n\n**Untrained encoders** ({', '.join(untrained)}): for trials, not for use." if untrained else ""
    return "## Encoders\n\n" + "\n".join(lines) + warning


def _of_photos_alone(run: Run) -> bool:
    """Whether the training saw no captions."""
    return not any(of.sha256 for view, of in run.features.items() if not view.is_image)


def _figures(run: Run, metrics: Mapping[str, Any] | None, former: bool) -> str:
    if not metrics:
        if _of_photos_alone(run) and run.relevance == "pairs":
            return "## Figures\n\nNone: its photos have neither captions nor labels to measure results by."
        return "## Figures\n\nNot evaluated yet: `cmrhash eval` before the export fills this in."
    protocol = metrics["protocol"]
    lines = ["| texts | direction | mAP | chance | of the real embeddings |", "|---|---|---|---|---|"]
    for row in metrics["rows"]:
        values = (row.get(key) for key in ("map", "chance", "map_real"))
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in values)
        langs = "-".join(lang for lang in (row["lang"], row.get("database_lang")) if lang)  # both for t2t
        lines.append(f"| {langs or '-'} | {row['direction']} | {shown} |")
    said = [f"- {key}: {protocol[key]}" for key in SAYS if protocol.get(key)]
    before = (
        "Measured before items of the collection were added, removed or changed; `cmrhash eval` measures it again.\n"
    )
    return "\n".join(["## Figures\n", *([before] if former else []), *lines, "", *said])


def _plain(text: str) -> str:
    """Escape the Markdown in a name."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(shown(text).split()))
