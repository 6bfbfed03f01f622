"""The schema of params.yaml: one class per section, every key required, no default values.

A stage declares the sections that it reads as a class of its own, with these as fields;
`params_file.py` reads the file.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from stages.core.norms import NORMS, Budget

EPS_UNIT = "(pixel units: write 8/255, not 8)"
MAX_HELD_OUT = 0.8  # validation and test together


def _parse_number(value: Any) -> Any:
    """A text such as ``8/255`` or ``1e-05`` as a number; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        numerator, denominator = (
            map(float, value.split("/")) if "/" in value else (float(value), 1.0)
        )
        return numerator / denominator
    except (ValueError, ZeroDivisionError):
        raise ValueError("a number or a fraction such as 8/255") from None


def _parse_list(value: Any) -> Any:
    """A YAML list as the tuple that strict typing asks for."""
    return tuple(value) if isinstance(value, list) else value


Number = Annotated[float, BeforeValidator(_parse_number), AllowInfNan(False)]
Text = Annotated[str, Field(pattern=r"\S")]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Section(BaseModel):
    """A mapping of params.yaml: every key required, no other accepted, values keep their type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataParams(Section):
    """``data``: which images, how they are cropped and resized, and how they are split."""

    source: Text
    table: Text
    class_pattern: Text
    image_size: int = Field(ge=16, le=4096)
    crop: Literal["none", "square", "cervix"]
    test: Literal["split", "folders", "official"]
    val_fraction: Number = Field(gt=0, le=0.5)
    test_fraction: Number = Field(gt=0, le=0.5)
    duplicate_similarity: Number = Field(ge=0.5, le=1)
    conflicting_labels: Literal["keep", "drop"]
    max_rejected: Number = Field(ge=0, le=1)
    label_fixes: Text
    exclude: Text
    groups: Text
    group_pattern: Text

    @field_validator("test_fraction")
    @classmethod
    def _leave_training_images(cls, value: float, info: ValidationInfo) -> float:
        if value + info.data.get("val_fraction", 0) > MAX_HELD_OUT:
            raise ValueError(f"at most {MAX_HELD_OUT:g} together with data.val_fraction")
        return value


class ModelParams(Section):
    """``model``: the architecture and its initial weights."""

    arch: Text
    weights: Text
    weights_sha256: Text


class _Budget(Section):
    norm: Literal["linf", "l2"]
    eps: Number

    @field_validator("eps")
    @classmethod
    def _check_eps(cls, eps: float, info: ValidationInfo) -> float:
        check_plausible([eps], info.data.get("norm", "linf"))
        return eps

    @property
    def budget(self) -> Budget:
        """Norm and ε as one value."""
        return Budget.of(self.norm, self.eps)


class PerturbationBudget(_Budget):
    """What an attacker may do: perturbations whose ``norm`` is at most ``eps``."""


class AttackParams(_Budget):
    """``attack``: the threat model that attacks, adversarial training and evaluation share.

    Not a subclass of PerturbationBudget: pydantic would hand it on whole to a stage that declares
    the budget alone.
    """

    eps_grid: Annotated[tuple[Number, ...], BeforeValidator(_parse_list)]
    second_eps: Number

    @field_validator("eps_grid")
    @classmethod
    def _check_grid(cls, grid: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not grid or any(a >= b for a, b in itertools.pairwise(grid)):
            raise ValueError(f"a list of increasing numbers {EPS_UNIT}")
        check_plausible(grid, info.data.get("norm", "linf"))
        return grid

    @field_validator("second_eps")
    @classmethod
    def _check_second(cls, eps: float, info: ValidationInfo) -> float:
        if eps:
            check_plausible([eps], other_norm(info.data.get("norm", "linf")))
        return eps

    @property
    def second_budget(self) -> Budget | None:
        """The budget in the other norm, if one is set."""
        return Budget.of(other_norm(self.norm), self.second_eps) if self.second_eps else None


def check_plausible(values: Sequence[float], norm: str) -> None:
    """Raise ValueError unless all ε are plausible in this norm: 8/255 is not in L2."""
    low, high = NORMS[norm].plausible
    if not all(low <= eps <= high for eps in values):
        raise ValueError(
            f"a number from {low:g} to {high:g} for norm {norm}, such as {NORMS[norm].example} "
            f"{EPS_UNIT}"
        )


def other_norm(norm: str) -> str:
    """The norm that isn't this one."""
    return "l2" if norm == "linf" else "linf"


class AugmentParams(Section):
    """``augment``: random changes of the training images."""

    flip: bool
    rotate90: bool
    shift: Number = Field(ge=0, le=0.5)
    zoom: Number = Field(ge=0, le=0.5)
    brightness: Number = Field(ge=0, le=1)
    contrast: Number = Field(ge=0, le=1)
    saturation: Number = Field(ge=0, le=1)


class TrainingParams(Section):
    """What ``train_clean`` and ``train_adv`` share: optimization and validation."""

    epochs: Count
    batch_size: int = Field(ge=2, le=2**31 - 1)
    optimizer: Literal["sgd", "adamw"]
    lr: Number = Field(gt=0, le=10)
    backbone_lr: Number = Field(ge=0, le=1)
    freeze: Text
    warmup: Number = Field(ge=0, le=0.9)
    weight_decay: Number = Field(ge=0, le=1)
    label_smoothing: Number = Field(ge=0, le=0.5)
    balance: Literal["none", "loss", "sampler"]
    clip_norm: Number = Field(ge=0)
    ema: Number = Field(ge=0, le=0.9999)
    patience: NonNegativeInt
    val_images: Count
    val_steps: Count
    augment: AugmentParams


class TrainCleanParams(TrainingParams):
    """``train_clean``: standard training."""

    val_eps: Number

    @field_validator("val_eps")
    @classmethod
    def _check_eps(cls, eps: float) -> float:
        check_plausible([eps], "linf")
        return eps

    @property
    def val_budget(self) -> Budget:
        """Of the attack in validation; apart from attack.eps, which must not retrain this model."""
        return Budget.of("linf", self.val_eps)


class TrainAdvParams(TrainingParams):
    """``train_adv``: adversarial fine-tuning within ``attack.eps``."""

    method: Literal["fgsm", "fgsm_rs", "nfgsm", "pgd", "trades", "mart", "free", "noise"]
    alpha_rel: Number = Field(gt=0, le=10)
    steps: Count
    beta: Number = Field(ge=0, le=100)
    sigma: Number = Field(gt=0, le=1)
    awp: Number = Field(ge=0, le=0.1)
    eps_ramp: Number = Field(ge=0, le=1)
    clean_share: Number = Field(ge=0, le=0.9)

    @field_validator("steps")
    @classmethod
    def _replay_at_least_once(cls, steps: int, info: ValidationInfo) -> int:
        if info.data.get("method") == "free" and steps < 2:
            raise ValueError(
                "at least 2 replays for the method free: the first one only adds noise"
            )
        return steps


class AttackEvalParams(Section):
    """``attack_eval``: how strongly both models are attacked."""

    batch_size: Count
    noise_draws: Count
    bim_steps: Count
    pgd_steps: Count
    pgd_restarts: Count
    curve_steps: Count
    ensemble: Literal["lean", "full"]
    targets: Count
    subset: int = Field(ge=2, le=2**31 - 1)
    aa_steps: int = Field(ge=2, le=2**31 - 1)
    aa_queries: Count
    min_eps_rounds: Count
    examples: int = Field(ge=1, le=16)
    surrogate: Text
    smoothing_sigma: Number = Field(ge=0, le=1)

    def for_curve(self) -> Self:
        """The same with PGD as it is run at the other ε of the grid: fewer steps, one start."""
        return self.model_copy(update={"pgd_steps": self.curve_steps, "pgd_restarts": 1})


class EvaluateParams(Section):
    """``evaluate``: the statistics of the report."""

    confidence: Number = Field(ge=0.5, le=0.999)
    bootstrap: int = Field(ge=100, le=2**31 - 1)
    suspicious_accuracy: Number = Field(ge=0, le=1)
    strict: bool


class RuntimeParams(Section):
    """``runtime``: where it runs; not declared to DVC, so that moving to a GPU retrains nothing."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Count
    nodes: Count
    precision: Literal["auto", "fp32", "bf16"]
    workers: NonNegativeInt
    cluster: str = Field(pattern=r"^(none|(tcp|tls)://.+:\d+)$")
    tracking: bool


class Seeded(Section):
    """The seed, which every stage reads."""

    seed: NonNegativeInt


class ResultParams(Seeded):
    """All that changes a result."""

    data: DataParams
    model: ModelParams
    attack: AttackParams
    train_clean: TrainCleanParams
    attack_eval: AttackEvalParams
    train_adv: TrainAdvParams
    evaluate: EvaluateParams


class Params(ResultParams):
    """The whole of params.yaml."""

    runtime: RuntimeParams


class StageParams(Seeded):
    """What a stage reads: its own class adds sections.

    ``runtime`` isn't declared to DVC; device and precision change results by rounding.
    """

    runtime: RuntimeParams
