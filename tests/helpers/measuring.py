"""Measurements of small models on a small dataset."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from lightning_fabric import Fabric
from torch import nn

from stages.core.dataset import ImageDataset
from stages.measurements import suite, universal
from stages.measurements.context import Context
from stages.measurements.steps import Steps
from stages.measurements.target import TargetModel
from stages.models.batches import DatasetSplit
from stages.models.classifier import Classifier
from stages.models.packed import for_attacks
from tests.helpers.params import params


def make_context(
    fabric: Fabric, dataset: ImageDataset, models: Mapping[str, nn.Module], **changes: Any
) -> Context:
    """What measurements read: models on the test images, parameters with changes."""
    p, test = params(**changes), DatasetSplit.from_dataset(dataset, "test")
    targets = {}
    for name, model in models.items():
        model.to(fabric.device)
        fused = for_attacks(model, fabric) if isinstance(model, Classifier) else model
        size, seed = p.attack_eval.batch_size, p.seed
        targets[name] = TargetModel(fabric, model, fused, test, size, seed)
    return Context(p.attack, p.attack_eval, dataset, targets, None, Steps(fabric))


def run_suite(context: Context) -> pd.DataFrame:
    """The rows of predictions.csv, which other measurements read."""
    for measurement in (universal, suite):
        context.results |= measurement.run(context)
    return context.predictions
