"""params.yaml -> frozen dataclasses: this file is the schema, one class a section, and holds no defaults.

The whole file is checked before a stage does any work, so that a typo in a later stage's section is found at once; a stage
then receives only the sections that it names, the same ones that dvc.yaml declares for it (a test compares the two).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from stages.core.errors import InputError

LARGEST_LINF = 0.5  # a pixel of 0.5 can then be anything: no image is left
PIXELS = "(pixel units: write 8/255, not 8)"


class ParamsError(InputError):
    """A key of params.yaml is unknown, missing, of the wrong type or out of range; the message names it."""


def _field(parse: Callable[[Any], Any]) -> Any:
    return dataclasses.field(metadata={"parse": parse})


def _number(value: Any) -> float:
    """A YAML number, or text such as ``8/255`` or ``1e-05`` (which PyYAML reads as a string)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        numerator, _, denominator = value.partition("/") if isinstance(value, str) else (value, "", "")
        number = float(Fraction(numerator) / Fraction(denominator or 1))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError("a number or a fraction such as 8/255") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def real(low: float, high: float = math.inf, *, above: bool = False, unit: str = "") -> Any:
    """A number in [low, high], or in (low, high] with ``above``."""
    wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]{' ' + unit if unit else ''}"

    def parse(value: Any) -> float:
        number = _number(value)
        if not (low < number if above else low <= number) or number > high:
            raise ValueError(wanted)
        return number

    return _field(parse)


def integer(low: int, high: int = 2**31 - 1) -> Any:
    """A whole number in [low, high]."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number of at least {low}" + ("" if high == 2**31 - 1 else f" and at most {high}"))
        return value

    return _field(parse)


def choice(*options: str) -> Any:
    """One of the given words."""

    def parse(value: Any) -> str:
        if value not in options:
            raise ValueError("one of " + ", ".join(options))
        return value

    return _field(parse)


def flag() -> Any:
    """true or false."""

    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return _field(parse)


def text() -> Any:
    """A word or a path, not empty."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError("a non-empty text")
        return value

    return _field(parse)


def reals(low: float, high: float, unit: str = "") -> Any:
    """A strictly increasing list of numbers in (low, high]."""

    def parse(value: Any) -> tuple[float, ...]:
        wanted = f"a list of increasing numbers in ({low:g}, {high:g}] {unit}".strip()
        if not isinstance(value, list) or not value:
            raise ValueError(wanted)
        numbers = tuple(_number(item) for item in value)
        if any(not low < n <= high for n in numbers) or any(a >= b for a, b in itertools.pairwise(numbers)):
            raise ValueError(wanted)
        return numbers

    return _field(parse)


def section(kind: type) -> Any:
    """A nested mapping."""
    return dataclasses.field(metadata={"section": kind})


@dataclass(frozen=True)
class Data:
    """``data``: which photographs, how they are cut to size, and how they are split."""

    source: str = text()
    table: str = text()
    image_size: int = integer(16, 4096)
    crop: str = choice("none", "square", "cervix")
    test: str = choice("split", "official")
    val_fraction: float = real(0, 0.5, above=True)
    test_fraction: float = real(0, 0.5, above=True)
    duplicate_similarity: float = real(0.5, 1)
    conflicting_labels: str = choice("keep", "drop")
    usable_part: float = real(0, 1)
    max_rejected: float = real(0, 1)
    label_fixes: str = text()
    exclude: str = text()
    groups: str = text()
    group_pattern: str = text()


@dataclass(frozen=True)
class Model:
    """``model``: the architecture and where its first weights come from."""

    arch: str = text()
    weights: str = text()
    weights_sha256: str = text()


@dataclass(frozen=True)
class Attack:
    """``attack``: the threat model, shared by attack, adversarial training and evaluation."""

    norm: str = choice("linf", "l2")
    eps: float = real(0, 100, above=True, unit=PIXELS)
    eps_grid: tuple[float, ...] = reals(0, 100, PIXELS)


@dataclass(frozen=True)
class Augment:
    """``augment``: random changes of the training batch."""

    flip: bool = flag()
    rotate90: bool = flag()
    shift: float = real(0, 0.5)
    zoom: float = real(0, 0.5)
    brightness: float = real(0, 1)
    contrast: float = real(0, 1)
    saturation: float = real(0, 1)


@dataclass(frozen=True)
class Training:
    """What ``train_clean`` and ``train_adv`` share: one optimisation, judged every epoch on validation photographs."""

    epochs: int = integer(1)
    batch_size: int = integer(2)
    optimizer: str = choice("sgd", "adamw")
    lr: float = real(0, 10, above=True)
    backbone_lr: float = real(0, 1)
    freeze: str = text()
    warmup: float = real(0, 0.9)
    weight_decay: float = real(0, 1)
    label_smoothing: float = real(0, 0.5)
    balance: str = choice("none", "loss", "sampler")
    clip_norm: float = real(0)
    ema: float = real(0, 0.9999)
    patience: int = integer(0)
    val_images: int = integer(1)
    val_steps: int = integer(1)
    augment: Augment = section(Augment)


@dataclass(frozen=True)
class TrainClean(Training):
    """``train_clean``: the optimisation without an attacker."""

    val_eps: float = real(0, 0.5, above=True, unit=PIXELS)


@dataclass(frozen=True)
class TrainAdv(Training):
    """``train_adv``: the optimisation against an attacker of budget ``attack.eps``."""

    method: str = choice("fgsm", "fgsm_rs", "nfgsm", "pgd", "trades", "mart", "free")
    alpha_rel: float = real(0, 10, above=True)
    steps: int = integer(1)
    beta: float = real(0, 100)
    awp: float = real(0, 0.1)
    eps_ramp: float = real(0, 1)
    clean_share: float = real(0, 0.9)


@dataclass(frozen=True)
class AttackEval:
    """``attack_eval``: how hard the two models are attacked."""

    batch_size: int = integer(1)
    noise_draws: int = integer(1)
    bim_steps: int = integer(1)
    pgd_steps: int = integer(1)
    pgd_restarts: int = integer(1)
    curve_steps: int = integer(1)
    subset: int = integer(2)
    aa_steps: int = integer(2)
    aa_queries: int = integer(1)
    min_eps_rounds: int = integer(1)
    strict: bool = flag()
    examples: int = integer(1, 16)


@dataclass(frozen=True)
class Evaluate:
    """``evaluate``: the statistics of the report."""

    confidence: float = real(0.5, 0.999)
    bootstrap: int = integer(100)
    suspicious_accuracy: float = real(0, 1)


@dataclass(frozen=True)
class Runtime:
    """``runtime``: where it runs; not declared to DVC, so that moving to a GPU retrains nothing."""

    device: str = choice("auto", "cpu", "cuda", "mps")
    devices: int = integer(1)
    precision: str = choice("auto", "fp32", "bf16")
    workers: int = integer(0)
    tracking: bool = flag()


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    seed: int = integer(0)
    data: Data = section(Data)
    model: Model = section(Model)
    attack: Attack = section(Attack)
    train_clean: TrainClean = section(TrainClean)
    attack_eval: AttackEval = section(AttackEval)
    train_adv: TrainAdv = section(TrainAdv)
    evaluate: Evaluate = section(Evaluate)
    runtime: Runtime = section(Runtime)


def _build(kind: type, raw: Any, where: str, file: Path) -> Any:
    if not isinstance(raw, dict):
        raise ParamsError(f"{file}: {where or 'the file'}: expected a mapping of keys, got {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown, missing = [k for k in raw if k not in fields], [k for k in fields if k not in raw]
    if unknown or missing:
        parts = [f"{what} {', '.join(map(str, keys))}" for what, keys in (("unknown", unknown), ("missing", missing)) if keys]
        raise ParamsError(f"{file}: {where or 'top level'}: expected the keys {', '.join(fields)}, got {'; '.join(parts)}")
    values = {}
    for name, field in fields.items():
        key = f"{where}.{name}" if where else name
        if "section" in field.metadata:
            values[name] = _build(field.metadata["section"], raw[name], key, file)
            continue
        try:
            values[name] = field.metadata["parse"](raw[name])
        except ValueError as error:
            raise ParamsError(f"{file}: {key}: expected {error}, got {raw[name]!r}") from None
    return kind(**values)


def load_all(file: Path | str = "params.yaml") -> Params:
    """The checked contents of a params file.

    Raises ParamsError, naming file and key, for anything unknown, missing, of the wrong type, out of range or contradictory.
    """
    file = Path(file)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{file}: expected a parameter file, got none: run the stages from the project's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: expected YAML, got an error: {error}") from None
    params: Params = _build(Params, raw, "", file)
    if params.attack.norm == "linf":
        for key, value in [("eps", params.attack.eps), *(("eps_grid", eps) for eps in params.attack.eps_grid)]:
            if value > LARGEST_LINF:
                raise ParamsError(f"{file}: attack.{key}: expected a number in (0, {LARGEST_LINF:g}] {PIXELS}, got {value:g}")
    if params.data.val_fraction + params.data.test_fraction > 0.8:
        raise ParamsError(
            f"{file}: data.val_fraction + data.test_fraction: expected at most 0.8, "
            f"got {params.data.val_fraction + params.data.test_fraction:g}"
        )
    return params


def load_params(*names: str, file: Path | str = "params.yaml") -> Any:
    """Check the whole file, return only what is named: what a stage doesn't declare to DVC it can't read.

    names: sections ("data") or single keys ("attack.eps"), the same ones that dvc.yaml lists for the stage.
    """
    params, wanted = load_all(file), SimpleNamespace()
    for name in names:
        head, _, key = name.partition(".")
        value = getattr(params, head)
        if key:
            value = SimpleNamespace(**vars(getattr(wanted, head, SimpleNamespace())), **{key: getattr(value, key)})
        setattr(wanted, head, value)
    return wanted


def flatten(params: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> values, as ``dvc params diff`` names them; for logging."""
    flat: dict[str, Any] = {}
    for name, value in vars(params).items():
        if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
