"""Everything that a run wrote, as the report reads it; and what the report has computed so far."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.dataset import SPLITS, ImageDataset, is_transformation_zone, load_dataset
from stages.core.errors import InputError
from stages.core.files import FileFormatError, read_csv, read_json
from stages.core.norms import Budget
from stages.core.params import ResultParams
from stages.core.paths import METRICS, MODELS, PREDICTIONS, PROCESSED, history_path
from stages.core.predictions import (
    CLEAN,
    EPS_TOLERANCE,
    WORST,
    attacks_at,
    eps_values,
    select,
    validate,
    within,
    worst_case,
)
from stages.core.tables import read_table
from stages.report.formatting import MODEL_LABELS
from stages.report.intervals import ConfidenceIntervals


@dataclass(frozen=True)
class ModelResults:
    """What attack_eval and training wrote about one model.

    Attributes:
        name: one of MODELS.
        rows: predictions.csv, with the rows of the transfer attacks.
        history: the training curve.
    """

    name: str
    rows: pd.DataFrame
    history: pd.DataFrame

    @property
    def folder(self) -> Path:
        """Of its tables and pictures."""
        return PREDICTIONS / self.name

    @property
    def label(self) -> str:
        """In texts."""
        return MODEL_LABELS[self.name]

    def table(self, name: str) -> pd.DataFrame:
        """One of its tables."""
        return read_table(self.folder, name)

    def document(self, name: str) -> dict[str, Any]:
        """One of its JSON files."""
        return read_json(self.folder / f"{name}.json", "attack_eval", dict[str, Any])


@dataclass
class Results:
    """All that a section needs.

    Attributes:
        p: all parameters that change a result.
        dataset: the processed dataset.
        data: metrics/data.json.
        models: by name, standard training first.
        intervals: of the test images.
        plots: the tables in plots/, by name, once they are computed.
        metrics: metrics/evaluate.json, likewise.
        checks: metrics/diagnostics.json, likewise.
        figures: PNG by name, likewise.
    """

    p: ResultParams
    dataset: ImageDataset
    data: dict[str, Any]
    models: dict[str, ModelResults]
    intervals: ConfidenceIntervals
    plots: dict[str, pd.DataFrame] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """The main one."""
        return self.p.attack.budget

    @property
    def eps(self) -> float:
        """Of the main budget."""
        return self.p.attack.eps

    @property
    def level(self) -> str:
        """Confidence level, ``95%``."""
        return f"{100 * self.p.evaluate.confidence:g}%"

    @property
    def synthetic(self) -> bool:
        """Whether the images are."""
        return bool(self.data.get("synthetic", False))

    @property
    def synthetic_images(self) -> str:
        """For the notes of figures that show images."""
        return "; synthetic images" if self.synthetic else ""

    @property
    def synthetic_data(self) -> str:
        """For the notes of charts."""
        return "; synthetic data" if self.synthetic else ""

    @property
    def chart_note(self) -> str:
        """For charts with intervals."""
        return f"{self.level} CI{self.synthetic_data}"

    @property
    def images_note(self) -> str:
        """How many images, of how many patients."""
        return f"n = {self.n} test images, {self.groups} {self.clusters}"

    @cached_property
    def images(self) -> pd.DataFrame:
        """The test images: path, group, label; sorted by path."""
        return select(self.models[MODELS[0]].rows)[["path", "group", "label"]]

    @property
    def n(self) -> int:
        """Test images."""
        return len(self.images)

    @property
    def groups(self) -> int:
        """Of the test images."""
        return int(self.images["group"].nunique())

    @property
    def majority_rate(self) -> float:
        """Accuracy of always predicting the most frequent class of the test images."""
        return float(self.images["label"].value_counts(normalize=True).max())

    @property
    def signs_of_leakage(self) -> list[str]:
        """What preprocess found between training and test that chance does not explain."""
        return list(self.data.get("nearest_in_train", {}).get("signs", []))

    @property
    def clusters(self) -> str:
        """What a group is: patients where all are known, else patients or groups."""
        known = self.data.get("groups", {}).get("images_with_known_patient")
        names = {self.data.get("images"): "patients", 0: "groups"}
        return names.get(known, "patients or groups")

    @property
    def transformation_zone(self) -> bool:
        """Whether the classes are types of the transformation zone."""
        return is_transformation_zone(self.dataset.classes)

    @cached_property
    def counts(self) -> pd.DataFrame:
        """Images per class (rows) and split (columns)."""
        manifest = self.dataset.manifest
        table = pd.crosstab(manifest["label"], manifest["split"])
        names = list(self.dataset.classes)
        return table.reindex(index=names, columns=list(SPLITS), fill_value=0)

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """attack, label, kind of every attack that was run."""
        tables = [model.table("attacks") for model in self.models.values()]
        tables.append(self.models["adv"].table("transfer_attacks"))
        attacks = pd.concat(tables).drop_duplicates("attack").set_index("attack")
        for model in self.models.values():
            if unknown := set(model.rows["attack"]) - set(attacks.index) - {CLEAN}:
                raise FileFormatError(
                    f"{model.folder}: expected the attacks of attacks.csv, got {unknown.pop()}"
                )
        return attacks

    def attacks_of(self, *kinds: str) -> list[str]:
        """The attacks of these kinds, from cheap to expensive."""
        return self.attacks.index[self.attacks["kind"].isin(kinds)].tolist()

    @cached_property
    def steps(self) -> dict[str, int]:
        """Attack -> gradient steps of one run of it at the main ε."""
        rows = pd.concat([model.rows for model in self.models.values()])
        at_eps = rows[(rows["eps"] - self.eps).abs() <= EPS_TOLERANCE * self.eps]
        return {attack: int(n) for attack, n in at_eps.groupby("attack")["steps"].max().items()}

    def attack_label(self, attack: str, *, steps: bool = True) -> str:
        """``PGD-10``, or ``PGD`` without its steps."""
        if attack in (CLEAN, WORST):
            return {CLEAN: "Clean", WORST: "Worst case"}[attack]
        label = self.attacks.loc[attack, "label"]
        if steps and attack in self.steps:
            return label.format(steps=self.steps[attack])
        return label.replace("-{steps}", "")

    def worst(self, model: ModelResults, eps: float | None = None) -> pd.DataFrame:
        """Per image the worst case within ε, by default the main one; sorted by path."""
        return worst_case(within(model.rows, self.eps if eps is None else eps))

    def plot(self, name: str, model: str) -> pd.DataFrame:
        """The rows of one model in a table of plots/."""
        rows = self.plots[name]
        return rows[rows["model"] == model]


def load_results(p: ResultParams) -> Results:
    """Read what the other stages wrote.

    Raises:
        InputError: when a file is missing or damaged, no attack was run at the main ε, or the two
            models were evaluated on different images.
    """
    models: dict[str, ModelResults] = {}
    transfer = read_table(PREDICTIONS / "adv", "transfer")
    for name in MODELS:
        folder = PREDICTIONS / name
        # Adversarial examples of the other model are within the budget: they count, too.
        received = transfer[transfer["target"] == name].drop(columns="target")
        tables = [read_table(folder, "predictions"), received]
        rows = validate(pd.concat(tables, ignore_index=True), str(folder))
        if not attacks_at(rows, p.attack.eps):
            found = ", ".join(f"{eps:g}" for eps in eps_values(rows)) or "none"
            raise InputError(
                f"attack.eps: expected predictions under attack at {p.attack.eps:g}, got {found}"
            )
        models[name] = ModelResults(name, rows, read_csv(history_path(name), f"train_{name}", ()))
    data = read_json(METRICS / "data.json", "preprocess", dict[str, Any])
    first, second = (select(model.rows) for model in models.values())
    columns = ["path", "label", "group"]
    if not first[columns].equals(second[columns]):
        raise InputError("adv: expected predictions for the same images and labels as clean")
    intervals = ConfidenceIntervals(
        first["group"], p.evaluate.confidence, p.evaluate.bootstrap, p.seed
    )
    return Results(p, load_dataset(PROCESSED), data, models, intervals)


def with_interval(
    name: str, value: float | np.floating, interval: tuple[float, float] | None = None
) -> dict[str, float]:
    """``{name: value}``, and ``<name>_low``, ``<name>_high`` where there is an interval."""
    ends = {f"{name}_low": interval[0], f"{name}_high": interval[1]} if interval else {}
    return {name: float(value), **ends}
