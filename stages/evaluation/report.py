"""The report: the same figures in words, as a short table for the terminal and as one self-contained HTML page.

The page holds no script and loads nothing; its layout is in report.html.jinja, which escapes every text it is given.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.predictions import CLEAN
from stages.evaluation.figures import MODEL_NAMES, format_budget
from stages.evaluation.metrics import WORST

UNKNOWN = "not enough to say"
TRANSFORMATION_ZONE = re.compile(r"type[ _]?[123]", re.IGNORECASE)  # how its types are called where the classes are these
# norm -> what an attacker may do within a budget
ALLOWED = {
    "linf": "change every pixel value by at most {budget}",
    "l2": "add to the pixel values a change of Euclidean length at most {budget}",
}
FEW = 10  # photographs of a class, below which its figures are called uncertain
# (key, name, unit): the rows of the short table; a difference exists for some
HEADLINE = (
    ("clean_accuracy", "right as they are", "%"),
    ("balanced_accuracy", "right, mean over classes", "%"),
    ("robust_accuracy_worst", "right whatever was tried", "%"),
    ("balanced_robust_accuracy_worst", "the same, mean over classes", "%"),
    ("attack_success_rate_worst", "of the right ones, changed", "%"),
    ("log_loss", "log loss", ""),
)


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    metrics: metrics/evaluate.json; data: metrics/data.json; counts: photographs per class (rows) and split; rejected:
    path, reason; robustness, confusion, per_class, minimum_eps, corruptions: the tables in plots/; same_images: pgd on the
    images of the attacks that saw only some; training: model -> its curve; attacks: the distinct attack, steps, seed and
    budgets that were run, with the models; ensembles: the distinct ensemble.json; figures: name -> PNG; settings: name ->
    text; diagnostics: metrics/diagnostics.json.
    """

    norm: str
    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    counts: pd.DataFrame
    rejected: pd.DataFrame
    robustness: pd.DataFrame
    same_images: pd.DataFrame
    confusion: pd.DataFrame
    per_class: pd.DataFrame
    minimum_eps: pd.DataFrame
    corruptions: pd.DataFrame
    training: Mapping[str, pd.DataFrame]
    attacks: pd.DataFrame
    figures: Mapping[str, bytes]
    ensembles: Sequence[Mapping[str, Any]]
    settings: Mapping[str, str]
    confidence: float
    suspicious_accuracy: float
    diagnostics: Mapping[str, Mapping[str, Mapping[str, Any]]]


def percent(share: float | None) -> str:
    """0.4567 -> ``45.7 %``."""
    return UNKNOWN if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def figure(values: Mapping[str, Any], name: str, unit: str = "%", *, signed: bool = False) -> str:
    """A figure with its interval: ``45.7 % (36.0 to 55.9)``; in points and with its sign if it is a difference."""
    if name not in values:
        return UNKNOWN
    scale, digits = (100, 1) if unit == "%" else (1, 3)
    text = [f"{scale * values[key]:{'+' * signed}.{digits}f}" for key in (name, f"{name}_low", f"{name}_high") if key in values]
    unit = {"%": " points" if signed else " %", "": ""}[unit]
    interval = f"({text[1]} to {text[2]})" if len(text) == 3 else ""
    return " ".join(_unbroken(part) for part in (text[0] + unit, interval) if part)


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def of_100(values: Mapping[str, Any], name: str, level: str) -> str:
    """``97 (95 % interval: 93 to 99)`` of a hundred."""
    whole = [f"{100 * values[key]:.0f}" for key in (name, f"{name}_low", f"{name}_high") if key in values]
    return whole[0] + (f" ({level} interval: {_unbroken(f'{whole[1]} to {whole[2]}')})" if len(whole) == 3 else "")


def p_value(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``."""
    return _unbroken("p < 0.001" if p < 0.001 else f"p = {p:.3f}")


def models_of(metrics: Mapping[str, Any]) -> list[str]:
    """The models that have figures, clean first."""
    return [model for model in MODEL_NAMES if model in metrics]


def headline_table(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: what, one column per model, and the paired difference if there are two."""
    models, change = models_of(metrics), metrics.get("difference")
    rows = [["", *(MODEL_NAMES[model] for model in models), *(["difference"] if change else [])]]
    for key, name, unit in HEADLINE:
        cells = [figure(metrics[model], key, unit) for model in models]
        rows.append([name, *cells, *([figure(change, key, unit, signed=True) if key in change else ""] if change else [])])
    return rows


def terminal(metrics: Mapping[str, Any], level: str, norm: str) -> str:
    """The headline as text for the terminal."""
    rows = headline_table(metrics)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    what = (
        f"{metrics['n']} test photographs in {metrics['groups']} groups, attacked within "
        f"{format_budget(metrics['eps'], norm)}, {level} intervals"
    )
    best = f"always the commonest class: {percent(metrics['majority_rate'])}, log loss {metrics['prior_log_loss']:.3f}"
    return "\n".join([what, *lines, best])


def sentences(metrics: Mapping[str, Any], level: str, norm: str) -> list[str]:
    """The headline in plain words, one finding each."""
    told, allowed = [], ALLOWED[norm].format(budget=format_budget(metrics["eps"], norm))
    for model in models_of(metrics):
        values = metrics[model]
        text = (
            f"After {MODEL_NAMES[model]} the model names the right class on {of_100(values, 'clean_accuracy', level)} of 100 "
            f"test photographs as they are."
        )
        if "attack_success_rate_worst" in values:
            text += (
                f" Of 100 that it gets right, an attacker who may {allowed} changes the answer on "
                f"{of_100(values, 'attack_success_rate_worst', level)}; counted on {values['clean_correct']} photographs."
            )
        else:
            text += f" It gets none right, so what an attacker could change is {UNKNOWN}."
        told.append(text)
    told.append(
        f"Always answering the commonest class would be right on {100 * metrics['majority_rate']:.0f} of 100, attacked or not."
    )
    if change := metrics.get("difference"):
        told.append(
            f"On the same photographs, adversarial training instead of clean training changes the share that is right whatever "
            f"was tried by {figure(change, 'robust_accuracy_worst', signed=True)} "
            f"(McNemar {p_value(change['robust_accuracy_worst_mcnemar_p'])}), and the share that is right as they are by "
            f"{figure(change, 'clean_accuracy', signed=True)} (McNemar {p_value(change['clean_accuracy_mcnemar_p'])})."
        )
    return told


def cautions(report: Report) -> list[str]:
    """What a careful reader would ask about these very figures."""
    metrics, told = report.metrics, []
    majority, n = metrics["majority_rate"], metrics["n"]
    for model in models_of(metrics):
        values, name = metrics[model], MODEL_NAMES[model]
        if values.get("clean_accuracy_low", 0) <= majority:
            told.append(
                f"After {name}, accuracy ({percent(values['clean_accuracy'])}) isn't shown to be better than always answering "
                f"the commonest class ({percent(majority)}): robustness of such a model means little."
            )
        if values["robust_accuracy_worst"] <= majority:
            told.append(
                f"After {name}, the share that is right whatever was tried ({percent(values['robust_accuracy_worst'])}) is no "
                f"better than what always answering the commonest class would keep ({percent(majority)})."
            )
        cells = report.confusion[(report.confusion["model"] == model) & (report.confusion["attack"] == WORST)]
        shares = cells.groupby("predicted", sort=False)["count"].sum() / cells["count"].sum()
        if shares.max() > 0.9 and len(report.counts) > 1:
            told.append(f"Under attack the model after {name} answers “{shares.idxmax()}” {percent(shares.max())} of the time.")
        if values["clean_accuracy"] > report.suspicious_accuracy and not report.data.get("synthetic", False):
            told.append(
                f"{percent(values['clean_accuracy'])} after {name} is more than is plausible on real photographs of this kind "
                f"(above {percent(report.suspicious_accuracy)}). Look for a leak before believing it: pictures of one patient "
                f"in both training and test, marks that give the class away, or a wrong label file."
            )
    test = report.counts["test"]
    if absent := [name for name, count in test.items() if count == 0]:
        told.append(f"No test photograph of {_listed(absent)}: {UNKNOWN} about it.")
    if few := [f"{name} ({count})" for name, count in test.items() if 0 < count < FEW]:
        told.append(f"Fewer than {FEW} test photographs of {_listed(few)}: its figures are guesses.")
    if n < 100:
        told.append(f"Only {n} test photographs: read the intervals, not the figures.")
    if metrics["groups"] == n or report.data.get("groups", {}).get("images_with_known_patient") == 0:
        told.append(
            "It isn't known which photographs show the same patient: the intervals are too narrow, and the figures too good, "
            "as far as patients are divided between training and test."
        )
    if missing := [name for model, name in MODEL_NAMES.items() if model not in metrics]:
        told.append(f"No predictions of {_listed(missing)}: {UNKNOWN} about it, nor about the difference.")
    return told


def _listed(names: list[str]) -> str:
    return ", ".join(map(str, names))


def attack_rows(report: Report) -> list[dict[str, Any]]:
    """Per attack at the headline budget: accuracy with interval and success rate of each model; on how many, if not on all.
    What saw only some photographs is followed by pgd on the same ones: the other rows are about other photographs."""
    rows, budget = [], report.metrics["eps"]
    here = report.robustness[(report.robustness["eps"] - budget).abs() <= 1e-4 * budget]
    for attack in [*(name for name in dict.fromkeys(here["attack"]) if name != WORST), WORST]:
        key = "attack_success_rate_worst" if attack == WORST else "attack_success_rate"
        found = {model: report.metrics[model].get(key) for model in models_of(report.metrics)}
        rates = {model: rate.get(attack) if isinstance(rate, dict) else rate for model, rate in found.items()}
        tried = here.loc[here["attack"] == attack, "count"].min()
        some = f" ({tried} photographs)" if tried < here["count"].max() else ""
        name = "worst case" if attack == WORST else f"{attack}{some}"
        rows.append({"attack": name, "cells": _cells(report, here, attack, rates), "some": bool(some)})
        if (report.same_images["attack"] == attack).any():
            cells = _cells(report, report.same_images, attack, None)
            rows.append({"attack": f"pgd on the same {tried}", "cells": cells, "some": True})
    return rows


def _cells(report: Report, table: pd.DataFrame, attack: str, rates: Mapping[str, float | None] | None) -> list[tuple[str, str]]:
    """Per model: share still right under an attack, with interval; share changed, where there are ``rates``."""
    cells = []
    for model in models_of(report.metrics):
        found = table[(table["model"] == model) & (table["attack"] == attack)]
        seen = found.rename(columns={"accuracy": "x", "low": "x_low", "high": "x_high"}).to_dict("records")
        changed = percent(rates[model]) if rates else ""
        cells.append((figure(seen[0], "x"), changed) if seen else ("not run", "not run"))
    return cells


def _ensembles_in_words(report: Report) -> list[str]:
    """What the ensemble of attacks consisted of, to stand beside its number."""
    return [
        f"{one['name']} is made of parts of AutoAttack and is not AutoAttack: {_listed(one['attacks'])}; {one['iterations']} "
        f"iterations, restarts {one['restarts']}, {one['queries']} queries of Square, {one['wrong_classes']} wrong classes, "
        f"seed {one['seed']}, on {one['images']} photographs; {one['library']}."
        for one in report.ensembles
    ]


def defect_rows(report: Report) -> list[tuple[str, list[str]]]:
    """Per defect and model: how many photographs are right, ``13, 12, 10`` as it gets more severe; first without a defect."""
    table = report.corruptions.assign(right=(report.corruptions["accuracy"] * report.corruptions["count"]).round().astype(int))
    rows = []
    for name in dict.fromkeys(table["corruption"]):
        of = table[table["corruption"] == name]
        cells = [", ".join(map(str, of.loc[of["model"] == model, "right"])) for model in models_of(report.metrics)]
        rows.append(("as they are" if name == CLEAN else name.replace("_", " "), cells))
    return rows


def diagnostic_rows(report: Report) -> list[dict[str, Any]]:
    """Per check: its threshold, and per model the verdict, the value and on how many photographs."""
    found = report.diagnostics
    rows = []
    for id in sorted({id for checks in found.values() for id in checks}, key=lambda id: int(id[1:])):
        any_ = next(checks[id] for checks in found.values() if id in checks)
        cells = [found.get(model, {}).get(id) for model in models_of(report.metrics)]
        rows.append({"id": id, "name": any_["name"], "threshold": any_["threshold"], "cells": cells})
    return rows


def _smallest_in_words(report: Report) -> list[str]:
    """Per model the budget within which half of its right answers are changed."""
    told = []
    for model in models_of(report.metrics):
        values, name = report.metrics[model], MODEL_NAMES[model].capitalize()
        if "median_min_eps" in values:
            budget = format_budget(values["median_min_eps"], report.norm)
            told.append(f"{name}: half of {values['min_eps_images']} photographs it gets right are changed within {budget}.")
        elif values["min_eps_images"]:
            told.append(f"{name}: no budget tried changes half of {values['min_eps_images']} photographs it gets right.")
        else:
            told.append(f"{name}: it gets none of these photographs right, so what could be changed is {UNKNOWN}.")
    return told


def _verdicts_in_words(report: Report) -> list[str]:
    """``Clean training: 22 of 25 PASS; D7 WARN, D25 INFO.``"""
    told = []
    for model, checks in report.diagnostics.items():
        others = ", ".join(f"{id} {check['verdict']}" for id, check in checks.items() if check["verdict"] != "PASS")
        passed = sum(check["verdict"] == "PASS" for check in checks.values())
        told.append(f"{MODEL_NAMES[model].capitalize()}: {passed} of {len(checks)} PASS" + (f"; {others}." if others else "."))
    return told


def _confusions(report: Report) -> list[dict[str, Any]]:
    names = {CLEAN: "as they are", WORST: "worst case"}
    return [
        {
            "title": f"{MODEL_NAMES[model].capitalize()}, {names[attack]}",
            "rows": [(actual, row.to_dict("records")) for actual, row in cells.groupby("actual", sort=False)],
        }
        for (model, attack), cells in report.confusion.groupby(["model", "attack"], sort=False)
    ]


def _per_class(report: Report) -> list[tuple[str, list[str]]]:
    table, rows = report.per_class, []
    for name in report.counts.index:
        cells = []
        for model in models_of(report.metrics):
            for attack in (CLEAN, WORST):
                found = table[(table["model"] == model) & (table["attack"] == attack) & (table["class"] == name)]
                seen = found.rename(columns={"recall": "x", "low": "x_low", "high": "x_high"}).to_dict("records")
                cells.append(figure(seen[0], "x") if seen else UNKNOWN)
        rows.append((name, cells))
    return rows


def _curve_in_words(report: Report) -> str:
    told = []
    for model in models_of(report.metrics):
        worst = report.robustness.query("model == @model and attack == @WORST")
        steps = ", ".join(
            f"{percent(row.accuracy)} at {format_budget(row.eps, report.norm)}" for row in worst.itertuples() if row.eps > 0
        )
        told.append(f"after {MODEL_NAMES[model]} {percent(worst['accuracy'].iloc[0])} without change, {steps}")
    return "; ".join(told)


def _sizes_in_words(report: Report) -> str:
    side = report.data["shorter_side"]
    return f", shorter side {side['smallest']} to {side['largest']}, median {side['median']:.0f} pixels"


def _counts_in_words(report: Report, key: str) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(report.data[key].items(), key=lambda item: -item[1]))


def _training_in_words(report: Report) -> list[str]:
    told = []
    for model, curve in report.training.items():
        chosen = curve[curve["chosen"] == 1].dropna(axis=1)
        if len(chosen) == 1:
            row = chosen.iloc[0]
            text = f"{MODEL_NAMES[model].capitalize()}: epoch {row['epoch']:.0f} of {len(curve)} was kept"
            if "val_clean_accuracy" in row:
                text += f", with {percent(row['val_clean_accuracy'])} of the validation photographs right as they are"
            if "val_robust_accuracy" in row:
                text += f" and {percent(row['val_robust_accuracy'])} of its attacked part right"
            told.append(text + ".")
    return told


def render(report: Report) -> str:
    """The page as HTML text."""
    here = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    level = f"{100 * report.confidence:g}\N{NO-BREAK SPACE}%"
    here.filters |= {"percent": percent, "budget": lambda eps: format_budget(eps, report.norm), "short": lambda x: f"{x:.2g}"}
    return here.get_template("report.html.jinja").render(
        r=report,
        level=level,
        models=models_of(report.metrics),
        names=MODEL_NAMES,
        headline=headline_table(report.metrics),
        sentences=sentences(report.metrics, level, report.norm),
        cautions=cautions(report),
        attack_rows=attack_rows(report),
        defect_rows=defect_rows(report),
        diagnostic_rows=diagnostic_rows(report),
        ensembles=_ensembles_in_words(report),
        smallest=_smallest_in_words(report),
        verdicts=_verdicts_in_words(report),
        allowed=ALLOWED[report.norm].format(budget=format_budget(report.metrics["eps"], report.norm)),
        transformation_zone=all(TRANSFORMATION_ZONE.fullmatch(name) for name in report.counts.index),
        confusions=_confusions(report),
        per_class=_per_class(report),
        curve=_curve_in_words(report),
        sizes=_sizes_in_words(report),
        stains=_counts_in_words(report, "stain_guess"),
        crops=_counts_in_words(report, "crops"),
        training=_training_in_words(report),
        images={name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in report.figures.items()},
        figure=figure,
        unknown=UNKNOWN,
    )
