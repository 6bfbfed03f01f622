"""What must be known of a trained model to use it: preprocessing, and accuracy in its evaluation.

The model card for readers, data/model_card.md, is written by the stage evaluate.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import InputError
from stages.core.files import md5
from stages.core.norms import Budget
from stages.core.paths import METRICS, PREDICTIONS, PROCESSED, weights_path

LOCK = Path("dvc.lock")
EVALUATION, INVENTORY = METRICS / "evaluate.json", METRICS / "data.json"


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1] and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class EvaluatedModel:
    """The model with these weights.

    Attributes:
        model: clean or adv.
        md5: of the weights file.
        crop: as data.crop.
        synthetic: whether it was trained on synthetic images.
        norm: as attack.norm.
        eps: of the attacks, in pixel units.
        images: number of test images.
        confidence: confidence level of the intervals.
        clean_accuracy: on unperturbed images.
        robust_accuracy_worst: worst case over all attacks.
    """

    model: str
    md5: str
    crop: str
    synthetic: bool
    norm: str
    eps: float
    images: int
    confidence: float
    clean_accuracy: Estimate
    robust_accuracy_worst: Estimate

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "EvaluatedModel":
        fields = json.loads(text)
        for name in ("clean_accuracy", "robust_accuracy_worst"):
            fields[name] = Estimate(**fields[name])
        return cls(**fields)

    def disclaimer(self) -> str:
        """What must accompany every prediction of the model."""
        text = (
            f"Clean accuracy {self.clean_accuracy}, robust accuracy {self.robust_accuracy_worst} "
            f"under white-box attacks ({Budget.of(self.norm, self.eps)}), on {self.images} "
            f"test images ({self.confidence:.0%} confidence intervals). Not a medical device."
        )
        if self.synthetic:
            text += " Trained on synthetic images: the predictions have no clinical meaning."
        return text


def read_evaluated_model(model: str) -> EvaluatedModel:
    """One of MODELS in the current folder, with the results of the run that dvc.lock records.

    Raises:
        InputError: when weights, predictions or metrics are missing or don't belong together.
    """
    weights, tables = weights_path(model), PREDICTIONS / model
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
        prepared, attacked = stages["preprocess"], stages[f"attack_eval@{model}"]
        evaluated = stages["evaluate"]
        digests = {path: md5(path) for path in (weights, EVALUATION, INVENTORY)}
        metrics = json.loads(EVALUATION.read_text(encoding="utf-8"))
        inventory = json.loads(INVENTORY.read_text(encoding="utf-8"))
    except (FileNotFoundError, KeyError) as error:
        raise InputError(
            f"{error}: expected the results of a whole `dvc repro`, got none"
        ) from None

    # The weights, whatever they are attacked with, and the metrics are those of one run.
    _check_same(weights, digests[weights], _locked_md5(attacked, "deps", weights))
    _check_same(INVENTORY, digests[INVENTORY], _locked_md5(prepared, "outs", INVENTORY))
    _check_same(EVALUATION, digests[EVALUATION], _locked_md5(evaluated, "outs", EVALUATION))
    for path, writer, reader in ((PROCESSED, prepared, attacked), (tables, attacked, evaluated)):
        _check_same(path, _locked_md5(writer, "outs", path), _locked_md5(reader, "deps", path))

    params = evaluated["params"]["params.yaml"]
    return EvaluatedModel(
        model=model,
        md5=digests[weights],
        crop=prepared["params"]["params.yaml"]["data"]["crop"],
        synthetic=inventory["synthetic"],
        norm=params["attack"]["norm"],
        eps=metrics["eps"],
        images=metrics["n"],
        confidence=float(params["evaluate"]["confidence"]),
        clean_accuracy=_estimate(metrics[model], "clean_accuracy"),
        robust_accuracy_worst=_estimate(metrics[model], "robust_accuracy_worst"),
    )


def _estimate(metrics: dict[str, Any], name: str) -> Estimate:
    return Estimate(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])


def _locked_md5(stage: dict[str, Any], kind: str, path: Path) -> str | None:
    """The digest that dvc.lock has of a file or folder, among the deps or outs of a stage."""
    for entry in stage[kind]:
        if entry["path"] == path.as_posix():
            return entry["md5"]
    return None


def _check_same(path: Path, found: str | None, recorded: str | None) -> None:
    if found is None or found != recorded:
        raise InputError(
            f"{path}: expected the one that dvc.lock records ({recorded}), got {found}: "
            "run `dvc repro`"
        )
