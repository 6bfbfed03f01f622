"""Accuracy under each attack and ε, and in the worst case over all of them."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from stages.core.predictions import (
    CLEAN,
    EPS_TOLERANCE,
    WORST,
    attacks_at,
    correct_under,
    eps_values,
    is_correct,
    select,
)
from stages.report.blocks import Block, Details, Figure, Table, Text, grouped_head, row
from stages.report.formatting import (
    MODEL_LABELS,
    NOT_AVAILABLE,
    listed,
    metric,
    percent,
    proportion,
    worst_last,
)
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section
from stages.report.style import (
    COLORS,
    GRAY,
    LINES,
    MARKERS,
    STYLE,
    TEXT_COLORS,
    eps_axis,
    make_figure,
    render_png,
)

NOISE_IS_NO_ATTACK = (
    "Random noise is a baseline, not an attack: accuracy under noise is no evidence of robustness."
)


def tables(results: Results, model: ModelResults) -> dict[str, pd.DataFrame]:
    """robustness: each attack at each of its ε, and the worst case from ε 0 on."""
    rows, intervals = model.rows, results.intervals
    clean = is_correct(select(rows))
    cases = [(0.0, CLEAN, clean), (0.0, WORST, clean)]
    for eps in eps_values(rows):
        cases += [
            (eps, attack, correct_under(rows, attack, eps)) for attack in attacks_at(rows, eps)
        ]
        cases.append((eps, WORST, is_correct(results.worst(model, eps))))
    cells = [
        (model.name, eps, attack, correct.mean(), *intervals.proportion(correct), len(correct))
        for eps, attack, correct in cases
    ]
    columns = ["model", "eps", "attack", "accuracy", "low", "high", "count"]
    return {"robustness": pd.DataFrame(cells, columns=columns)}


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """Accuracy clean, under each attack, and in the worst case; attack success rates."""
    rows, eps, intervals = model.rows, results.eps, results.intervals
    clean, worst = is_correct(select(rows)), is_correct(results.worst(model))
    outcomes = {attack: correct_under(rows, attack, eps) for attack in attacks_at(rows, eps)}
    accuracies: dict[str, float] = {}
    for name, correct in outcomes.items():
        accuracies |= with_interval(name, correct.mean(), intervals.proportion(correct))
    result: dict[str, Any] = {
        "clean_correct": int(clean.sum()),
        **with_interval("clean_accuracy", clean.mean(), intervals.proportion(clean)),
        **with_interval("robust_accuracy_worst", worst.mean(), intervals.proportion(worst)),
        "robust_accuracy": accuracies,
        "attacked_images": {name: len(correct) for name, correct in outcomes.items()},
    }
    if clean.any():
        rates: dict[str, float] = {}
        for name, correct in outcomes.items():
            rates |= _success_rate(name, correct, clean, results)
        result["attack_success_rate"] = rates
        result |= _success_rate("attack_success_rate_worst", worst, clean, results)
    grid = results.p.attack.eps_grid
    if all(attacks_at(rows, eps) for eps in grid):
        over_grid = np.mean([is_correct(results.worst(model, eps)) for eps in grid], axis=0)
        interval = intervals.mean(over_grid)
        result |= with_interval("expected_robustness", over_grid.mean(), interval)
    return result


def _success_rate(
    name: str, correct: np.ndarray, clean: np.ndarray, results: Results
) -> dict[str, float]:
    """Of the images that are correct without attack, the fraction misclassified under it."""
    interval = results.intervals.proportion(~correct, clean)
    return with_interval(name, (~correct)[clean].mean(), interval)


def _at_main_eps(results: Results) -> pd.DataFrame:
    table = results.plots["robustness"]
    at_eps = np.isclose(table["eps"], results.eps, rtol=EPS_TOLERANCE)
    return table[at_eps | (table["attack"] == CLEAN)]


@mpl.rc_context(STYLE)
def figures(results: Results) -> dict[str, bytes]:
    """Robust accuracy against ε."""
    table = results.plots["robustness"]
    worst = table[table["attack"] == WORST]
    figure, axes = make_figure(6.4, 3.4, 1, 1)
    axis, scale = axes[0, 0], results.budget.norm.axis_scale
    for model, rows in worst.groupby("model", sort=False):
        eps = rows["eps"] * scale
        axis.fill_between(
            eps, rows["low"], rows["high"], color=COLORS[model], alpha=0.18, linewidth=0
        )
        look: Any = {"marker": MARKERS[model], "color": COLORS[model], "label": MODEL_LABELS[model]}
        axis.plot(eps, rows["accuracy"], LINES[model], **look)
    label = f"Majority class ({percent(results.majority_rate)})"
    axis.axhline(results.majority_rate, color=GRAY, linewidth=1, linestyle=":", label=label)
    eps_axis(axis, worst["eps"] * scale, results.budget.norm)
    axis.set(ylim=(0, 1), ylabel="Robust accuracy")
    axis.set_title("Robust accuracy vs. ε (worst case over all attacks)")
    figure.legend(loc="outside upper center", ncols=3, handlelength=3.2)
    return {"robustness": render_png(figure, f"{results.images_note}; {results.chart_note}")}


@mpl.rc_context(STYLE)
def charts(results: Results) -> dict[str, bytes]:
    """Accuracy under each attack at the main ε."""
    chosen = _at_main_eps(results)
    rows = worst_last(chosen["attack"], WORST)
    figure, axes = make_figure(6.4, 1.1 + 0.33 * len(rows), 1, 1)
    axis = axes[0, 0]
    for shift, (model, values) in zip(
        (-0.17, 0.17), chosen.groupby("model", sort=False), strict=False
    ):
        for _, value in values.iterrows():
            y = rows.index(value["attack"]) + shift
            low, high, accuracy = value["low"], value["high"], value["accuracy"]
            label = MODEL_LABELS[model] if value["attack"] == WORST else None
            axis.hlines(y, low, high, color=COLORS[model], alpha=0.45, linewidth=3)
            axis.plot(accuracy, y, MARKERS[model], color=COLORS[model], markersize=5, label=label)
            text = f"{percent(accuracy)} [{100 * low:.1f}, {100 * high:.1f}]"
            axis.text(1.02, y, text, va="center", fontsize=7, color=TEXT_COLORS[model])
    label = f"Majority class ({percent(results.majority_rate)})"
    axis.axvline(results.majority_rate, color=GRAY, linewidth=1, linestyle=":", label=label)
    axis.set_yticks(range(len(rows)), [results.attack_label(name) for name in rows])
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="Accuracy")
    axis.set_title(f"Accuracy per attack ({results.budget})")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=3)
    return {"attacks": render_png(figure, f"{results.images_note}; {results.chart_note}")}


def curve_figure(results: Results) -> Block:
    """The figure, with the curve in words for those who can't see it."""
    sentences, table = [], results.plots["robustness"]
    for model in results.models.values():
        worst = table[(table["model"] == model.name) & (table["attack"] == WORST)]
        points = ", ".join(
            f"{percent(point.accuracy)} at {results.budget.norm.format(point.eps)}"
            for point in worst.itertuples()
        )
        sentences.append(f"{model.label}: {points}")
    return Figure(
        "robustness",
        "Robust accuracy against the perturbation budget. " + "; ".join(sentences),
        "Robust accuracy vs. ε, per image the worst case over all attacks with at most this ε; the "
        f"bands are {results.level} confidence intervals. Fewer attacks were run at the smaller ε, "
        "so those points are looser upper bounds.",
        "robustness.csv",
    )


def attack_rows(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """(attack, cells) at the main ε: per model accuracy and success rate; the worst case last."""
    chosen, rows = _at_main_eps(results), []
    for attack in worst_last(chosen["attack"], WORST):
        cells = []
        for model in results.models:
            members = chosen[(chosen["model"] == model) & (chosen["attack"] == attack)]
            records, values = members.to_dict("records"), results.metrics[model]
            accuracy = proportion(records[0]) if records else NOT_AVAILABLE
            if attack == CLEAN:
                rate = ""
            elif attack == WORST:
                rate = metric(values, "attack_success_rate_worst")
            else:
                rate = metric(values.get("attack_success_rate", {}), attack)
            cells.append((accuracy, rate))
        rows.append((results.attack_label(attack), cells))
    return rows


def ensemble_sentences(results: Results) -> list[str]:
    """What the ensemble consisted of, to be reported with its result."""
    configs = {m.label: m.document("ensemble") for m in results.models.values()}
    config = next(iter(configs.values()))
    square = [
        f"{c['square_images']} of the {c['square_remaining']} images left ({label})"
        for label, c in configs.items()
    ]
    targets = config["target_classes"]
    others = f"each of the {targets} likeliest other classes" if targets > 1 else "the other class"
    if results.p.attack_eval.ensemble == "lean":
        parts = (
            f"APGD on the margin to {others} and on the cross-entropy, {config['iterations']} "
            "iterations each and a few more in float32"
        )
    else:
        parts = (
            f"attacks of AutoAttack ({listed(config['attacks'])}; {config['iterations']} "
            f"iterations, {targets} target classes; {config['library']}), but not AutoAttack"
        )
    return [
        f"Ensemble {config['name']}, on what no attack before it found: {parts}; "
        f"seed {config['seed']}.",
        f"Square comes last, as a check for masked gradients: {config['queries']} queries for each "
        f"of {listed(square)}.",
    ]


def blocks(results: Results) -> list[Block]:
    """A chart, the same numbers on demand, and what the ensemble was."""
    labels = [model.label for model in results.models.values()]
    body = [
        row(attack, *(text for cell in cells for text in cell))
        for attack, cells in attack_rows(results)
    ]
    title = (
        f"Accuracy under each attack at {results.budget} on all {results.n} test images, with "
        f"{results.level} confidence intervals, and attack success rate. "
        "Data: plots/robustness.csv."
    )
    columns = grouped_head(["attack"], labels, ["accuracy", "success rate"])
    return [
        Figure(
            "attacks",
            "Accuracy under each attack and in the worst case, both models; the numbers are in the "
            "table below",
            f"Accuracy under each attack at {results.budget} on all {results.n} test images; bars "
            f"are {results.level} confidence intervals.",
            "robustness.csv",
        ),
        Details("Accuracy and success rate per attack", [Table(title, columns, body)]),
        *(Text(sentence) for sentence in ensemble_sentences(results)),
        Text(NOISE_IS_NO_ATTACK),
    ]


SECTION = Section("attacks", "Accuracy per attack", blocks, tables, metrics, figures, charts)
