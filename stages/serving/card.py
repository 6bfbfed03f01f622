"""What must be known of a trained model to use it honestly: how pictures are cut for it, and what it was measured at."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import InputError
from stages.core.files import md5

LOCK, METRICS, DATA = Path("dvc.lock"), Path("metrics/evaluate.json"), Path("metrics/data.json")


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
    usable_part: float  # as data.usable_part
    synthetic: bool  # trained on drawn pictures
    norm: str  # as attack.norm
    eps: float  # budget that it was attacked with, in units of the norm for pixels in [0, 1]
    images: int  # test photographs that it was measured on
    confidence: float  # level of the intervals
    clean_accuracy: Estimate
    robust_accuracy_worst: Estimate  # right under every attack that was tried

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        fields = json.loads(text)
        return cls(**{key: Estimate(**value) if isinstance(value, dict) else value for key, value in fields.items()})

    def notice(self) -> str:
        """What everybody who gets an answer of the model must be told."""
        robust = self.robust_accuracy_worst
        budget = {"linf": f"{255 * self.eps:.3g}/255 on each pixel value", "l2": f"{self.eps:.3g} in Euclidean length"}
        return (
            f"Measured on {self.images} test photographs: {self.clean_accuracy.value:.1%} right, and {robust.value:.1%} "
            f"({robust.low:.1%} to {robust.high:.1%}, {self.confidence:.0%} interval) after every attack tried of at most "
            f"{budget[self.norm]}. This is no medical device."
            + (" It was trained on drawn, synthetic pictures and says nothing about a patient." if self.synthetic else "")
        )


def weights_path(model: str) -> Path:
    """The file of ``clean`` or ``adv``."""
    return Path(f"data/models/{model}.safetensors")


def read_card(model: str) -> ModelCard:
    """The card of ``clean`` or ``adv`` in the current folder, from the files of the run that dvc.lock records.

    Raises InputError when the weights, the tables that they were judged by and the metrics don't belong together.
    """
    try:
        lock = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
        metrics, data = (json.loads(path.read_text(encoding="utf-8")) for path in (METRICS, DATA))
        attacked, evaluated, prepared = lock[f"attack_eval@{model}"], lock["evaluate"], lock["preprocess"]
        weights, tables, store = weights_path(model), Path(f"data/predictions/{model}"), Path("data/processed")
        chain = {
            weights: (md5(weights), _recorded(attacked, "deps", weights)),
            store: (_recorded(prepared, "outs", store), _recorded(attacked, "deps", store)),
            tables: (_recorded(attacked, "outs", tables), _recorded(evaluated, "deps", tables)),
            METRICS: (md5(METRICS), _recorded(evaluated, "outs", METRICS)),
            DATA: (md5(DATA), _recorded(prepared, "outs", DATA)),
        }
        for path, (found, recorded) in chain.items():
            if found != recorded:
                raise InputError(f"{path}: expected the one that dvc.lock records ({recorded}), got {found}: run `dvc repro`")
        part, how = metrics[model], prepared["params"]["params.yaml"]["data"]
        return ModelCard(
            model=model,
            md5=chain[weights][0],
            crop=how["crop"],
            usable_part=float(how["usable_part"]),
            synthetic=data["synthetic"],
            norm=evaluated["params"]["params.yaml"]["attack"]["norm"],
            eps=metrics["eps"],
            images=metrics["n"],
            confidence=float(evaluated["params"]["params.yaml"]["evaluate"]["confidence"]),
            **{
                name: Estimate(part[name], part[f"{name}_low"], part[f"{name}_high"])
                for name in ("clean_accuracy", "robust_accuracy_worst")
            },
        )
    except (FileNotFoundError, KeyError) as error:
        raise InputError(f"{error}: expected the results of a whole `dvc repro`, got none") from None


def _recorded(stage: dict[str, Any], kind: str, path: Path) -> str:
    """The digest that dvc.lock has of a file or folder."""
    return {entry["path"]: entry["md5"] for entry in stage[kind]}[path.as_posix()]
