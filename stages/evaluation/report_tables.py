"""The rows of the report's tables, as texts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.core.budgets import format_eps
from stages.core.params import other_norm
from stages.core.predictions import CALIBRATION_ATTACKS, CLEAN
from stages.evaluation.formatting import (
    CORRUPTION_LABELS,
    MODEL_LABELS,
    NOT_AVAILABLE,
    attack_label,
    capitalized,
    metric,
    percent,
    proportion,
)
from stages.evaluation.selection import EPS_TOLERANCE, WORST

EPS_PARAMS = ("attack.eps", "attack.eps_grid", "attack.second_eps", "train_clean.val_eps")


def attack_rows(
    metrics: Mapping[str, Any], robustness: pd.DataFrame, steps: Mapping[str, int]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(attack, cells) at the main eps: for each model accuracy with interval, and success rate; the worst case last."""
    eps, models = metrics["eps"], [model for model in MODEL_LABELS if model in metrics]
    here = robustness[
        ((robustness["eps"] - eps).abs() <= EPS_TOLERANCE * eps) | (robustness["attack"] == CLEAN)
    ]
    order = [*(attack for attack in dict.fromkeys(here["attack"]) if attack != WORST), WORST]
    return [
        (
            attack_label(attack, steps.get(attack, 0)),
            [_attack_cell(here, metrics[m], m, attack) for m in models],
        )
        for attack in order
    ]


def _attack_cell(
    table: pd.DataFrame, metrics: Mapping[str, Any], model: str, attack: str
) -> tuple[str, str]:
    if attack == CLEAN:
        return _accuracy_cell(table, model, attack), ""
    if attack == WORST:
        return _accuracy_cell(table, model, attack), metric(metrics, "attack_success_rate_worst")
    return _accuracy_cell(table, model, attack), metric(
        metrics.get("attack_success_rate", {}), attack
    )


def _accuracy_cell(table: pd.DataFrame, model: str, attack: str) -> str:
    rows = table[(table["model"] == model) & (table["attack"] == attack)].to_dict("records")
    return proportion(rows[0]) if rows else NOT_AVAILABLE


def per_class_rows(
    table: pd.DataFrame, classes: Sequence[str], models: Sequence[str]
) -> list[tuple[str, int, list[str]]]:
    """(class, n, cells): for each model the recall on clean images and in the worst case."""
    rows = []
    for name in classes:
        members, cells = table[table["class"] == name], []
        for model in models:
            for attack in (CLEAN, WORST):
                found = members[
                    (members["model"] == model) & (members["attack"] == attack)
                ].to_dict("records")
                cells.append(proportion(found[0], "recall") if found else NOT_AVAILABLE)
        rows.append((name, int(members["count"].max()) if len(members) else 0, cells))
    return rows


def confusion_matrices(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One for each model, clean and in the worst case."""
    names = {CLEAN: "clean", WORST: "worst case"}
    return [
        {
            "title": f"{MODEL_LABELS[model]}, {names[attack]}",
            "rows": [
                (actual, row.to_dict("records"))
                for actual, row in cells.groupby("actual", sort=False)
            ],
        }
        for (model, attack), cells in table.groupby(["model", "attack"], sort=False)
    ]


def cost_rows(
    metrics: Mapping[str, Any], steps: Mapping[str, int], models: Sequence[str]
) -> list[tuple[str, int, list[str]]]:
    """(attack, gradient steps, cells): for each model mean PSNR and SSIM of the attack's adversarial examples."""
    rows = []
    for attack in metrics[models[0]]["robust_accuracy"]:
        cells = []
        for model in models:
            psnr, ssim = (metrics[model][name].get(attack) for name in ("mean_psnr", "mean_ssim"))
            cells += [NOT_AVAILABLE] * 2 if psnr is None else [f"{psnr:.1f} dB", f"{ssim:.3f}"]
        rows.append((attack_label(attack), steps.get(attack, 0), cells))
    return rows


def attacked_corruption_rows(
    table: pd.DataFrame, models: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """(corruption, cells): for each model the accuracy with its interval, without attack and under it."""
    found = {
        (row["model"], row["corruption"], row["attack"]): proportion(row)
        for row in table.to_dict("records")
    }
    rows = []
    for name in dict.fromkeys(table["corruption"]):
        attack = next(attack for _, other, attack in found if other == name and attack != CLEAN)
        cells = [found.get((model, name, case), "") for model in models for case in (CLEAN, attack)]
        rows.append((capitalized(CORRUPTION_LABELS.get(name, name)), cells))
    return rows


def conformal_rows(
    table: pd.DataFrame, steps: Mapping[str, int], models: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """(attack, cells): for each model and calibration the coverage with its interval, and the mean set size."""
    rows = []
    order = (
        [*(attack for attack in dict.fromkeys(table["attack"]) if attack != WORST), WORST]
        if len(table)
        else []
    )
    found = {
        (row["model"], row["calibration"], row["attack"]): row for row in table.to_dict("records")
    }
    for attack in order:
        cells = []
        for key in itertools.product(models, CALIBRATION_ATTACKS, [attack]):
            row = found.get(key)
            cells += (
                [proportion(row, "coverage"), f"{row['set_size']:.2f}"]
                if row
                else [NOT_AVAILABLE] * 2
            )
        rows.append((attack_label(attack, steps.get(attack, 0)), cells))
    return rows


def corruption_rows(table: pd.DataFrame, models: Sequence[str]) -> list[dict[str, Any]]:
    """Per corruption and severity: for each model the accuracy with its interval; first the clean images, last the mean."""
    rows = []
    for (name, severity), at in table.groupby(["corruption", "severity"], sort=False):
        cells = [proportion(at[at["model"] == model].iloc[0]) for model in models]
        label = CORRUPTION_LABELS.get(name, name)
        rows.append(
            {
                "corruption": capitalized(label) if severity else "Clean",
                "severity": severity or "",
                "cells": cells,
            }
        )
    corrupted = table[table["severity"] > 0]
    means = [
        percent(corrupted.loc[corrupted["model"] == model, "accuracy"].mean()) for model in models
    ]
    rows.append({"corruption": "Mean of all corruptions", "severity": "", "cells": means})
    return rows


def check_groups(
    checks: Mapping[str, Mapping[str, Mapping[str, Any]]],
    groups: Mapping[str, Sequence[str]],
    models: Sequence[str],
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(group, rows): per check its title and threshold, and for each model verdict, value and n."""
    result = []
    for group, members in groups.items():
        rows = []
        for check in members:
            results = [results[check] for results in checks.values() if check in results]
            if results:
                cells = [checks.get(model, {}).get(check) for model in models]
                rows.append(
                    {
                        "id": check,
                        "title": results[0]["name"],
                        "threshold": results[0]["threshold"],
                        "cells": cells,
                    }
                )
        result.append((group, rows))
    return result


def parameter_rows(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, value) of all parameters; eps as a fraction of 255."""
    return [
        (key, _parameter_text(key, value, params["attack.norm"])) for key, value in params.items()
    ]


def _parameter_text(key: str, value: Any, norm: str) -> str:
    if key in EPS_PARAMS:
        values = value if isinstance(value, list) else [value]
        norm = {"train_clean.val_eps": "linf", "attack.second_eps": other_norm(norm)}.get(key, norm)
        return ", ".join(format_eps(eps, norm) for eps in values)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
