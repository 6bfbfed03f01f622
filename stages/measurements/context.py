"""What every measurement reads, and what makes a measurement."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from stages.core.dataset import ImageDataset
from stages.core.files import write_bytes, write_json
from stages.core.params import AttackEvalParams, AttackParams
from stages.core.tables import Table, write_tables
from stages.measurements.steps import Steps
from stages.measurements.target import TargetModel
from stages.models.batches import DatasetSplit


@dataclass
class Context:
    """What a measurement reads.

    Attributes:
        attack: the threat model.
        p: how strongly models are attacked.
        dataset: all images.
        models: on the test images, the evaluated one first.
        surrogate: a separately trained model, or None.
        steps: runs what takes long.
        perturbations: the universal perturbation (3, H, W) of each model.
        results: what earlier measurements returned: file -> content.
    """

    attack: AttackParams
    p: AttackEvalParams
    dataset: ImageDataset
    models: Mapping[str, TargetModel]
    surrogate: TargetModel | None
    steps: Steps
    perturbations: dict[str, Tensor] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the evaluated model."""
        return next(iter(self.models))

    @property
    def target(self) -> TargetModel:
        """The evaluated model."""
        return self.models[self.name]

    @property
    def subset(self) -> np.ndarray:
        """Positions of the images for the expensive measurements."""
        return self.target.stratified(self.target.everything, self.p.subset)

    @property
    def predictions(self) -> pd.DataFrame:
        """predictions.csv, which the suite has written."""
        return self.results["predictions"]

    def validation(self, name: str) -> TargetModel:
        """A model on the validation images."""
        return self.models[name].on(DatasetSplit.from_dataset(self.dataset, "val"))

    def images(self, positions: np.ndarray, *columns: str) -> pd.DataFrame:
        """Columns of the manifest for the test images at these positions."""
        rows = self.target.split.rows[positions]
        return self.dataset.manifest.iloc[rows][list(columns)].reset_index(drop=True)


@dataclass(frozen=True)
class Measurement:
    """One result: how it is computed, and what it writes to data/predictions/<model>/.

    Attributes:
        run: file -> content: rows of a table, a JSON document, or the bytes of a file with its
            suffix in the name.
        tables: the tables among them.
        steps: how many steps it takes.
        applies: whether it is run at all.
    """

    run: Callable[[Context], dict[str, Any]]
    tables: tuple[Table, ...] = ()
    steps: Callable[[Context], int] = lambda context: 1
    applies: Callable[[Context], bool] = lambda context: True


def write_results(
    folder: Path, results: Mapping[str, Any], measurements: Iterable[Measurement]
) -> None:
    """Replace the folder by what measurements returned: tables, JSON documents, and other files."""
    shutil.rmtree(folder, ignore_errors=True)  # what a run with other parameters left is no result
    tables = [table for measurement in measurements for table in measurement.tables]
    write_tables(folder, [(table, results[table.name]) for table in tables])
    for name, content in results.items():
        if isinstance(content, bytes):
            write_bytes(folder / name, content)
        elif isinstance(content, dict):
            write_json(folder / f"{name}.json", content)
