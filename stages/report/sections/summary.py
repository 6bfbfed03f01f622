"""The first screen of the report, the main results in a table, and what limits them."""

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from stages.core.paths import REPORT
from stages.core.predictions import WORST
from stages.report.blocks import Block, Box, Cards, Items, Table, Text, head, row
from stages.report.formatting import class_label, listed, metric, percent
from stages.report.results import ModelResults, Results
from stages.report.section import Section
from stages.report.sections.attacks import curve_figure
from stages.report.sections.methods import made_on
from stages.report.sections.training import method_name
from stages.report.verdict import beats_majority_class, verdict

MIN_IMAGES_PER_CLASS = 10  # in the test split, below which a class's metrics are unreliable
MIN_IMAGES = 100  # in the test split, and
MIN_GROUPS = 50  # patients, on whom the intervals rest
COLLAPSE = 0.9  # fraction of one class among the predictions under attack
# (key, label, unit): the rows of the main table; a paired difference exists for some
MAIN_METRICS = (
    ("clean_accuracy", "Clean accuracy", "%"),
    ("robust_accuracy_worst", "Robust accuracy (worst case over all attacks)", "%"),
    ("attack_success_rate_worst", "Attack success rate (of correctly classified images)", "%"),
    ("balanced_accuracy", "Clean balanced accuracy", "%"),
    ("balanced_robust_accuracy_worst", "Robust balanced accuracy", "%"),
    ("expected_robustness", "Mean robust accuracy over the ε grid", "%"),
    ("log_loss", "Log loss, clean", ""),
)


def main_table(results: Results) -> list[list[str]]:
    """Header and rows: metric, one column per model, and the paired difference."""
    metrics, change = results.metrics, results.metrics["difference"]
    rows = [["", *(model.label for model in results.models.values()), "Difference"]]
    for key, label, unit in MAIN_METRICS:
        if any(key in metrics[model] for model in results.models):
            cells = [metric(metrics[model], key, unit=unit) for model in results.models]
            paired = metric(change, key, unit=unit, signed=True) if key in change else ""
            rows.append([label, *cells, paired])
    return rows


def terminal_summary(results: Results) -> str:
    """The main metrics as text for the terminal."""
    rows = main_table(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"n = {results.n} test images in {results.groups} groups; {results.budget}; "
        f"{results.level} confidence intervals in brackets"
    ]
    for cells in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    lines.append(
        f"Majority-class baseline: accuracy {percent(results.majority_rate)}; class-prior log loss "
        f"{results.metrics['prior_log_loss']:.3f}"
    )
    return "\n".join(lines)


def terminal_conclusion(results: Results) -> str:
    """The last lines of a run: what limits it, what it has shown, and where to read on."""
    found, lines = verdict(results), [f"caveat: {text}" for text in caveats(results)]
    lines.append(f"verdict: {' '.join([found.headline, *found.details])}")
    return "\n".join([*lines, f"report: {REPORT} (make report)"])


def caveats(results: Results, label: Callable[[str], str] = class_label) -> list[str]:
    """What limits these very results. label: the name of a class in a text."""
    texts = []
    for model in results.models.values():
        texts += _model_caveats(results, model, label)
    test = results.counts["test"]
    if absent := [label(name) for name, count in test.items() if count == 0]:
        texts.append(f"No test image of {listed(absent)}.")
    few = [
        f"{label(name)} ({count})"
        for name, count in test.items()
        if 0 < count < MIN_IMAGES_PER_CLASS
    ]
    if few:
        texts.append(
            f"Fewer than {MIN_IMAGES_PER_CLASS} test images of {listed(few)}: unreliable estimates."
        )
    advice = "interpret the intervals, not the point estimates."
    if results.n < MIN_IMAGES:
        texts.append(f"Only {results.n} test images: {advice}")
    elif results.groups < MIN_GROUPS:
        texts.append(f"Only {results.groups} {results.clusters} in the test split: {advice}")
    texts += results.signs_of_leakage
    if results.clusters != "patients":
        texts.append(
            "The patient is not known for all images: the intervals are too narrow, and the "
            "results too good, as far as patients are divided between training and test."
        )
    return texts


def _model_caveats(results: Results, model: ModelResults, label: Callable[[str], str]) -> list[str]:
    values, majority = results.metrics[model.name], results.majority_rate
    accuracy, robust = values["clean_accuracy"], values["robust_accuracy_worst"]
    texts = []
    if not beats_majority_class(results, model):
        texts.append(
            f"{model.label}: clean accuracy ({percent(accuracy)}) is not significantly above the "
            f"majority-class baseline ({percent(majority)}); the robust accuracy of such a model "
            "is not meaningful."
        )
    if robust <= majority:
        texts.append(
            f"{model.label}: robust accuracy ({percent(robust)}) is not above the majority-class "
            f"baseline ({percent(majority)})."
        )
    cells = results.plot("confusion", model.name)
    cells = cells[cells["attack"] == WORST]
    fractions = cells.groupby("predicted", sort=False)["count"].sum() / cells["count"].sum()
    if fractions.max() > COLLAPSE:
        texts.append(
            f"{model.label}: under attack the model predicts {label(fractions.idxmax())} for "
            f"{percent(fractions.max())} of the images (prediction collapse)."
        )
    limit = results.p.evaluate.suspicious_accuracy
    if accuracy > limit and not results.synthetic:
        texts.append(
            f"{model.label}: a clean accuracy of {percent(accuracy)} is implausibly high for real "
            f"photographs (above {percent(limit)}). Check for data leakage first: images of one "
            "patient in both training and test, shortcut features, or wrong labels."
        )
    return texts


def lead(results: Results) -> list[Block]:
    """The first screen: verdict, both models, what limits the results, the robustness curve."""
    side, p, found = results.dataset.image_size, results.p, verdict(results)
    synthetic = Text(
        Markup("<strong>Synthetic data.</strong> ")
        + "The images were generated by a program, so that the pipeline runs without a download. "
        "The results show that the pipeline works; they have no clinical meaning."
    )
    cards: list[Any] = []
    for model in results.models.values():
        values = results.metrics[model.name]
        method = f" ({method_name(p.train_adv)})" if model.name == "adv" else ""
        numbers = [
            ("Clean accuracy", metric(values, "clean_accuracy")),
            ("Robust accuracy", metric(values, "robust_accuracy_worst")),
            ("Majority class", percent(results.majority_rate)),
        ]
        cards.append((model.name, model.label + method, numbers))
    warnings = caveats(results)
    headline = Text(Markup("<strong>{}</strong>").format(found.headline))
    limits = Box([Text(Markup("<strong>Caveats</strong>")), Items(warnings)], "warn")
    return [
        Box([headline, Text(" ".join(found.details))], found.style),
        *([Box([synthetic], "warn")] if results.synthetic else []),
        Cards(cards),
        *([limits] if warnings else []),
        Text(
            f"Threat model: white-box, untargeted, {results.budget} on the model’s input ({side} × "
            f"{side} pixels, values in [0, 1]). n = {results.n} test images of {results.groups} "
            f"{results.clusters}; {results.level} confidence intervals in brackets; one run (seed "
            f"{p.seed}), so the intervals contain no variance of training. {made_on(results)}"
        ),
        curve_figure(results),
    ]


def blocks(results: Results) -> list[Block]:
    """The main table."""
    names, *rows = main_table(results)
    title = f"Main metrics, n = {results.n} test images. Source: metrics/evaluate.json."
    return [Table(title, head(*names), [row(*cells) for cells in rows])]


SECTION = Section("summary", "Main metrics", blocks)
