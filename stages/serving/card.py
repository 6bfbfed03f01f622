"""What must be known of a trained model to use it: its preprocessing, and the accuracy it was evaluated at."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.core.budgets import format_budget
from stages.core.errors import InputError
from stages.core.files import md5
from stages.core.paths import METRICS, PREDICTIONS, PROCESSED, weights_path

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1] and the interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelCard:
    """What belongs to the weights with this md5."""

    model: str  # clean or adv
    md5: str
    crop: str  # as data.crop
    synthetic: bool  # trained on synthetic images
    norm: str  # as attack.norm
    eps: float  # that it was attacked with, in pixel units
    images: int  # test images that it was evaluated on
    confidence: float  # confidence level of the intervals
    clean_accuracy: Estimate
    robust_accuracy_worst: Estimate  # worst case over all attacks

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        fields = json.loads(text)
        estimates = {
            key: Estimate(**value) for key, value in fields.items() if isinstance(value, dict)
        }
        return cls(**(fields | estimates))

    def disclaimer(self) -> str:
        """What must accompany every prediction of the model."""
        clean, robust, budget = (
            self.clean_accuracy,
            self.robust_accuracy_worst,
            format_budget(self.eps, self.norm),
        )
        text = (
            f"Clean accuracy {_percent(clean)}, robust accuracy {_percent(robust)} under white-box attacks "
            f"({budget}), on {self.images} test images ({self.confidence:.0%} confidence intervals). "
            "Not a medical device."
        )
        return text + (
            " Trained on synthetic images: the predictions have no clinical meaning."
            if self.synthetic
            else ""
        )


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def read_card(model: str) -> ModelCard:
    """The card of one of MODELS in the current folder, from the files of the run that dvc.lock records.

    Raises:
        InputError: when weights, tables of predictions and metrics don't belong together.
    """
    evaluation, inventory = METRICS / "evaluate.json", METRICS / "data.json"
    try:
        lock = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
        metrics, data = (
            json.loads(path.read_text(encoding="utf-8")) for path in (evaluation, inventory)
        )
        attacked, evaluated, prepared = (
            lock[f"attack_eval@{model}"],
            lock["evaluate"],
            lock["preprocess"],
        )
        weights, tables = weights_path(model), PREDICTIONS / model
        chain = {
            weights: (md5(weights), _locked_md5(attacked, "deps", weights)),
            PROCESSED: (
                _locked_md5(prepared, "outs", PROCESSED),
                _locked_md5(attacked, "deps", PROCESSED),
            ),
            tables: (_locked_md5(attacked, "outs", tables), _locked_md5(evaluated, "deps", tables)),
            evaluation: (md5(evaluation), _locked_md5(evaluated, "outs", evaluation)),
            inventory: (md5(inventory), _locked_md5(prepared, "outs", inventory)),
        }
        for path, (found, recorded) in chain.items():
            if found != recorded:
                raise InputError(
                    f"{path}: expected the one that dvc.lock records ({recorded}), got {found}: run `dvc repro`"
                )
        part, how = metrics[model], prepared["params"]["params.yaml"]["data"]
        return ModelCard(
            model=model,
            md5=chain[weights][0],
            crop=how["crop"],
            synthetic=data["synthetic"],
            norm=evaluated["params"]["params.yaml"]["attack"]["norm"],
            eps=metrics["eps"],
            images=metrics["n"],
            confidence=float(evaluated["params"]["params.yaml"]["evaluate"]["confidence"]),
            clean_accuracy=_estimate(part, "clean_accuracy"),
            robust_accuracy_worst=_estimate(part, "robust_accuracy_worst"),
        )
    except (FileNotFoundError, KeyError) as error:
        raise InputError(
            f"{error}: expected the results of a whole `dvc repro`, got none"
        ) from None


def _estimate(metrics: dict[str, Any], name: str) -> Estimate:
    return Estimate(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])


def _locked_md5(stage: dict[str, Any], kind: str, path: Path) -> str:
    """The digest that dvc.lock has of a file or folder."""
    return {entry["path"]: entry["md5"] for entry in stage[kind]}[path.as_posix()]
