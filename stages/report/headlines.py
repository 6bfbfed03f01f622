"""The few numbers that a run is told in: in `make diff`, in MLflow, in `make check`."""

from collections.abc import Mapping
from typing import Any

from stages.core.paths import MODELS

HEADLINES = {"clean_accuracy": "clean accuracy", "robust_accuracy_worst": "robust accuracy"}


def headlines(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of metrics/evaluate.json what metrics/headlines.json repeats: model -> metric -> value."""
    return {model: {name: metrics[model][name] for name in HEADLINES} for model in MODELS}
