"""Checks of settings, before anything heavy is imported. Standard library only."""

from __future__ import annotations

from cmrhash.config import (
    ACROSS,
    ADDED,
    DEVICES,
    DTYPES,
    LAYERS,
    MAX_BITS,
    MAX_COUNT,
    MAX_HIDDEN,
    MAX_IMAGE_SIZE,
    MAX_NUMBER,
    MAX_SEED,
    MIN_IMAGE_SIZE,
    RUNTIMES,
    SCHEDULES,
    STORE_DTYPE,
    STORE_DTYPES,
    ExtractConfig,
    FinetuneConfig,
    TrainConfig,
)
from cmrhash.errors import UsageError, did_you_mean


def check_device(name: str) -> None:
    """Raise UsageError for a name that no device has."""
    if name.partition(":")[0] not in DEVICES:
        fix = f"{did_you_mean(name, DEVICES)} use auto or cpu".strip()
        raise UsageError(f"'{name}' cannot be used (unknown kind of device)", None, fix, option="device")


def check_extract(config: ExtractConfig) -> None:
    """Raise UsageError for an unknown layer, runtime, device, number type or choice."""
    check_device(config.device)
    _check_choice("dtype", config.dtype, DTYPES, "'{}' is not a number type")
    _check_choice("runtime", config.runtime, RUNTIMES)
    _check_choice(STORE_DTYPE, config.store_dtype, STORE_DTYPES, "'{}' cannot be stored")
    _check_choice("layer", config.layer, LAYERS)
    _check_choice("added", config.added, ADDED, "unknown choice '{}'")
    side = MIN_IMAGE_SIZE if config.image_size is None else config.image_size
    _check_range("image_size", side, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)


def check_train(config: TrainConfig) -> None:
    """Raise UsageError for a number or a device that training cannot use."""
    check_device(config.device)
    for name, most in {"bits": MAX_BITS, "seed": MAX_SEED, "hidden": MAX_HIDDEN, "memory": MAX_SEED}.items():
        _check_range(name, getattr(config, name), int(name == "bits"), most)
    may_be_0 = ("weight_decay", "ema", "hidden", "dropout", "input_dropout")
    for name in ("epochs", "batch", "lr", "margin", *may_be_0):
        value = getattr(config, name)
        _check_number(name, value, name in may_be_0)
        if ("dropout" in name or name == "ema") and value >= 1:
            raise UsageError(f"{value} is out of range", None, "give a share below 1", option=name)
    _check_rates(config)
    _check_choice("schedule", config.schedule, SCHEDULES)
    _check_choice("direction", config.direction, ACROSS)
    for name in ("first_caption", "noise"):
        if not 0 <= getattr(config, name) <= 1:
            what = f"{getattr(config, name)} is out of range"
            raise UsageError(what, None, "give a share from 0 to 1", option=name)


def check_finetune(config: FinetuneConfig) -> None:
    """Raise UsageError for a number that fine-tuning cannot use."""
    _check_range("bits", config.bits, 1, MAX_BITS)
    _check_range("seed", config.seed, 0, MAX_SEED)
    for name in ("epochs", "batch", "lr", "clip", "weight_decay"):
        _check_number(name, getattr(config, name), zero=name == "weight_decay")
    _check_number("margin", 1 if config.margin is None else config.margin, zero=False)
    _check_range("unfreeze", 1 if config.unfreeze is None else config.unfreeze, 1, 1000)
    _check_rates(config)


def _check_rates(config: TrainConfig | FinetuneConfig) -> None:
    for name in ("image_lr", "text_lr"):
        value = getattr(config, name)
        _check_number(name, 0 if value is None else value, zero=True)
    if config.image_lr == config.text_lr == 0:
        raise UsageError("`image_lr=0` and `text_lr=0` leave nothing to train", None, "leave one of them out")


def _check_choice(name: str, value: str | None, of: tuple[str, ...], what: str = "") -> None:
    if value is not None and value not in of:
        near = "" if what else did_you_mean(value, of)
        fix = f"{near} choose one of {', '.join(of)}".strip()
        raise UsageError((what or f"unknown {name} '{{}}'").format(value), None, fix, option=name)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UsageError(f"{value} is out of range", None, f"give a whole number from {least} to {most}", option=name)


def _check_number(name: str, value: float, zero: bool) -> None:
    most = MAX_COUNT if isinstance(value, int) else MAX_NUMBER
    if not 0 <= value <= most or (value == 0 and not zero):
        fix = f"give a finite number {'from' if zero else 'above'} 0, at most {most:g}"
        raise UsageError(f"{value} is out of range", None, fix, option=name)
