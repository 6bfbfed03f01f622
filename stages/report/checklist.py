"""A checklist of standards, laws and reporting guidelines, filled in by the run.

The items are in checklist.yaml, in words of our own. Each gets the numbers that the run has for it,
and a status: evidence, partial, none, or to be stated by you.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NotRequired

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from stages.report.formatting import NBSP, class_label, metric, number
from stages.report.page import dataset_name
from stages.report.results import Results

FILES = {"html": Path("data/checklist.html"), "csv": Path("data/checklist.csv")}
EVIDENCE, PARTIAL, NONE, YOURS = "evidence", "partial", "none", "to be stated by you"
STATES = (EVIDENCE, PARTIAL, NONE, YOURS)
METRICS, CHECKS, DATA = (f"metrics/{name}.json" for name in ("evaluate", "diagnostics", "data"))
ENDS = ("_low", "_high")  # of an interval
# Key or pattern -> name in texts, and unit: fractions are shown as %, eps in the budget's unit.
NAMES = {
    "clean_accuracy": ("clean accuracy", "%"),
    "balanced_accuracy": ("clean balanced accuracy", "%"),
    "recall_*": ("clean recall of {}", "%"),
    "auc": ("AUC, clean", ""),
    "ece": ("expected calibration error, clean", "%"),
    "log_loss": ("log loss, clean", ""),
    "corrupted_accuracy": ("accuracy under common corruptions, mean", "%"),
    "robust_accuracy_worst": ("robust accuracy", "%"),
    "robust_accuracy.*": ("accuracy under {}", "%"),
    "attack_success_rate_worst": ("attack success rate", "%"),
    "attack_success_rate.*": ("success rate of {}", "%"),
    "expected_robustness": ("mean robust accuracy over the ε grid", "%"),
    "median_min_eps": ("median minimum perturbation", "eps"),
    "tolerated_eps": ("tolerated ε", "eps"),
    "tolerated_eps_at_least": ("tolerated ε, at least", "eps"),
    "patient_clean_accuracy_vote": ("clean accuracy of patients by majority vote", "%"),
    "patient_robust_accuracy_worst_vote": ("robust accuracy of patients by majority vote", "%"),
    "subgroup_difference.*.clean_accuracy": ("clean accuracy by {}, worst minus best", "pp"),
    "subgroup_difference.*.robust_accuracy_worst": (
        "robust accuracy by {}, worst minus best",
        "pp",
    ),
    "central_gradient_share": ("share of the input gradient in the center", "%"),
    "conformal_coverage_clean": ("coverage of prediction sets, clean", "%"),
    "conformal_set_size_clean": ("classes in a prediction set, clean", ""),
    "run:majority_rate": ("majority-class baseline", "%"),
    "run:difference.clean_accuracy": ("change of the clean accuracy", "pp"),
    "run:difference.robust_accuracy_worst": ("change of the robust accuracy", "pp"),
    "data:images": ("images", "count"),
    "data:groups.total": ("patients or groups", "count"),
    "data:groups.images_with_known_patient": ("images whose patient is known", "count"),
    "data:splits.*.images": ("images in the split {}", "count"),
    "data:splits.*.groups": ("patients or groups in the split {}", "count"),
    "data:rejected.total": ("rejected files", "count"),
    "data:duplicates.copies": ("copies left out", "count"),
    "data:duplicates.near": ("near-duplicates kept in one group", "count"),
    "data:cropped": ("images cropped to the cervix", "count"),
    "data:nearest_in_train.test.alike_share": ("look-alikes of training images", "%"),
}
# Key or pattern -> key of what its n is, or None for a difference of two values; others are about
# all test images.
COUNTS = {
    "corrupted_accuracy": "corrupted_images",
    "attack_success_rate*": "clean_correct",
    "median_min_eps": "min_eps_images",
    "subgroup_difference.*": None,
}


class Item(TypedDict):
    """An item of checklist.yaml."""

    item: str
    asks: str
    numbers: NotRequired[str]
    limit: NotRequired[str]
    by: NotRequired[str]


class Scheme(TypedDict):
    """A scheme of checklist.yaml."""

    scheme: str
    items: list[Item]


@dataclass(frozen=True)
class Number:
    """A number of the run.

    Attributes:
        key: in its file.
        name: in texts.
        unit: as in NAMES; ``PASS`` and the other verdicts for diagnostics.
        model: clean, adv, or empty where it is of neither.
        value: with ``low`` and ``high``, where it has an interval.
        n: images that it is about, or None.
        file: where it stands.
    """

    key: str
    name: str
    unit: str
    model: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    file: str

    def text(self, results: Results) -> str:
        """``91.4% [85.7, 96.3] (n = 245)``, on as few lines as it takes."""
        if self.unit == "count":
            return f"{self.value:,.0f}"
        if self.unit == "eps":
            found = ", ".join(
                results.budget.norm.format(value)
                for value in (self.value, self.low, self.high)
                if value is not None
            )
            text = re.sub(r", (.*)", r" [\1]", found)
        elif self.file == CHECKS:
            text = f"{number(self.value, '.3g')} {self.unit}"
        else:
            values = {"value": self.value, "value_low": self.low, "value_high": self.high}
            given = {name: value for name, value in values.items() if value is not None}
            signed = self.unit == "pp"
            text = metric(given, "value", unit=self.unit, signed=signed)
        return text if self.n is None else f"{text} (n{NBSP}={NBSP}{self.n})"


@dataclass(frozen=True)
class Filled:
    """An item with what the run has for it.

    Attributes:
        scheme: that it is of.
        item: its name there.
        asks: for what, in our words.
        status: one of STATES.
        numbers: evidence.
        absent: keys that the run has no number for.
        limit: what the numbers leave open.
    """

    scheme: str
    item: str
    asks: str
    status: str
    numbers: list[Number]
    absent: list[str]
    limit: str


@cache
def read_schemes() -> list[Scheme]:
    """The content of checklist.yaml."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return TypeAdapter(list[Scheme]).validate_python(yaml.safe_load(text))


def fill(results: Results) -> list[Filled]:
    """All items, of a run whose metrics and diagnostics are computed."""
    numbers = all_numbers(results)
    filled = []
    for scheme in read_schemes():
        for item in scheme["items"]:
            patterns = item.get("numbers", "").split()
            matched = {
                pattern: [found for found in numbers if fnmatch.fnmatchcase(found.key, pattern)]
                for pattern in patterns
            }
            chosen = [found for group in matched.values() for found in group]
            absent = [pattern for pattern, group in matched.items() if not group]
            limit = item.get("limit", "")
            if item.get("by") == "you":
                status = YOURS
            elif not chosen:
                status = NONE
            else:
                status = PARTIAL if absent or limit else EVIDENCE
            filled.append(
                Filled(scheme["scheme"], item["item"], item["asks"], status, chosen, absent, limit)
            )
    return filled


def all_numbers(results: Results) -> list[Number]:
    """What checklist.yaml can ask for: the numbers of NAMES, and the diagnostics."""
    numbers = []
    for model in results.models:
        values = _flat(results.metrics[model])
        if corrupted := results.metrics[model].get("corrupted_accuracy"):
            values["corrupted_accuracy"] = sum(corrupted.values()) / len(corrupted)
        numbers += _named(results, values, model, METRICS)
        for id_, check in results.checks[model].items():
            if "value" in check:
                unit, value, n = check["verdict"], check["value"], check["n"]
                name = f"{id_}, {check['name']}"
                numbers.append(Number(id_, name, unit, model, value, None, None, n, CHECKS))
    both = {key: value for key, value in results.metrics.items() if key not in results.models}
    run = {f"run:{key}": value for key, value in _flat(both).items()}
    data = {f"data:{key}": value for key, value in _flat(results.data).items()}
    return numbers + _named(results, run, "", METRICS) + _named(results, data, "", DATA)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> the numbers of nested sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


def _named(results: Results, values: Mapping[str, Any], model: str, file: str) -> list[Number]:
    """The numbers that have a name, in the order of NAMES."""
    numbers = []
    for pattern, (name, unit) in NAMES.items():
        for key in fnmatch.filter(values, pattern):
            if any(key.endswith(end) and key.removesuffix(end) in values for end in ENDS):
                continue
            low, high = (values.get(key + end) for end in ENDS)
            label = name.format(_matched_label(results, pattern, key))
            n = None if file == DATA else _count(results, values, key)
            numbers.append(Number(key, label, unit, model, values[key], low, high, n, file))
    return numbers


def _matched_label(results: Results, pattern: str, key: str) -> str:
    """What stands for the wildcard, in texts: a class, an attack, a split, a column."""
    before, _, after = pattern.partition("*")
    matched = key.removeprefix(before).removesuffix(after)
    if before == "recall_":
        return class_label(matched)
    return results.attack_label(matched) if matched in results.attacks.index else matched


def _count(results: Results, values: Mapping[str, Any], key: str) -> int | None:
    if key.startswith("recall_"):
        return int(results.counts.loc[key.removeprefix("recall_"), "test"])
    if key.startswith("patient_"):
        return results.metrics["groups"]
    for pattern, count in COUNTS.items():
        if fnmatch.fnmatchcase(key, pattern):
            return None if count is None else int(values[count])
    return results.n


def table(results: Results) -> pd.DataFrame:
    """data/checklist.csv: a row for each number of each item; items without numbers have one."""
    empty = Number("", "", "", "", float("nan"), None, None, None, "")
    rows = []
    for item in fill(results):
        for found in item.numbers or [empty]:
            rows.append(
                {
                    "scheme": item.scheme,
                    "item": item.item,
                    "asks": item.asks,
                    "status": item.status,
                    "number": found.name,
                    "key": found.key,
                    "model": found.model,
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                    "file": found.file,
                    "absent": " ".join(item.absent),
                    "limit": item.limit,
                    "synthetic": "yes" if results.synthetic else "no",
                }
            )
    return pd.DataFrame(rows).astype({"low": float, "high": float, "n": "Int64"})


def lines(item: Filled, results: Results) -> list[tuple[str, list[str]]]:
    """(name, cells): the numbers of an item, one cell for each model, or one for both together."""
    found: dict[str, dict[str, str]] = {}
    for each in item.numbers:
        found.setdefault(each.name, {})[each.model] = each.text(results)
    rows = []
    for name, texts in found.items():
        of_both = "" in texts
        cells = [texts[""]] if of_both else [texts.get(model, "") for model in results.models]
        rows.append((name, cells))
    return rows


def summary_rows(results: Results) -> list[list[str]]:
    """Header and rows: scheme, and how many of its items have each status."""
    counts = pd.DataFrame([(item.scheme, item.status) for item in fill(results)])
    rows = [["", *STATES]]
    for scheme, states in counts.groupby(0, sort=False)[1]:
        rows.append([str(scheme), *(str((states == state).sum()) for state in STATES)])
    return rows


def render(results: Results) -> str:
    """data/checklist.html."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    items = fill(results)
    schemes = {
        scheme["scheme"]: [
            (item, lines(item, results)) for item in items if item.scheme == scheme["scheme"]
        ]
        for scheme in read_schemes()
    }
    return environment.get_template("checklist.html.jinja").render(
        arch=results.p.model.arch,
        dataset=dataset_name(results),
        summary=summary_rows(results),
        schemes=schemes,
        heads=[model.label for model in results.models.values()],
        level=results.level,
        synthetic=results.synthetic,
        none=NONE,
        style=(folder / "page.css").read_text(encoding="utf-8"),
    )
