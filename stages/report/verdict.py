"""What a run found, in a sentence, and whether it can be believed."""

from dataclasses import dataclass

from stages.report.checks.check import INCONCLUSIVE, WARN
from stages.report.checks.registry import failed_checks
from stages.report.formatting import class_label, listed, metric, p_value, percent
from stages.report.results import ModelResults, Results

SIGNIFICANT = 0.05  # a p value below it
FAILED, DOUBTFUL, SOUND = "fail", "warn", "good"


@dataclass(frozen=True)
class Verdict:
    """The first thing that is said of a run.

    Attributes:
        style: FAILED, DOUBTFUL or SOUND.
        headline: one sentence.
        details: sentences: what adversarial fine-tuning changed, and the diagnostics.
    """

    style: str
    headline: str
    details: list[str]


def verdict(results: Results) -> Verdict:
    """Of a run whose metrics and diagnostics are computed."""
    style, headline = _headline(results)
    if style == SOUND and results.signs_of_leakage:
        style = DOUBTFUL
        headline += " Both may be too high: the split shows signs of leakage."
    return Verdict(style, headline, [_change(results), _diagnostics(results)])


def beats_majority_class(results: Results, model: ModelResults) -> bool:
    """Whether the interval of the clean accuracy lies above the majority-class baseline."""
    low = results.metrics[model.name].get("clean_accuracy_low", 0)
    return bool(low > results.majority_rate)


def _headline(results: Results) -> tuple[str, str]:
    """(style, sentence): what devalues the other numbers comes first."""
    majority = class_label(results.images["label"].value_counts().idxmax())
    constant = f"always answering “{majority}” ({percent(results.majority_rate)})"
    useless = [m.label for m in results.models.values() if not beats_majority_class(results, m)]
    if len(useless) == len(results.models):
        return FAILED, f"Neither model beats {constant}: their robust accuracy means nothing."
    # D27 compares with the majority class: in plain words below.
    if failed := [name for name in failed_checks(results) if not name.endswith(" D27")]:
        return FAILED, f"Do not trust the robust accuracy: {listed(failed)} failed."
    if useless:
        text = f"{useless[0]} does not beat {constant}: its robust accuracy means nothing."
        return DOUBTFUL, text
    robust = [results.metrics[name]["robust_accuracy_worst"] for name in results.models]
    if max(robust) <= results.majority_rate:
        return FAILED, f"Under attack neither model beats {constant}."
    change = results.metrics["difference"]
    if change["robust_accuracy_worst_permutation_p"] >= SIGNIFICANT:
        text = "Adversarial fine-tuning does not change the accuracy under attack significantly:"
        return DOUBTFUL, f"{text} {percent(robust[0])} before it, {percent(robust[1])} after it."
    raises = change["robust_accuracy_worst"] > 0
    return SOUND if raises else DOUBTFUL, (
        f"Adversarial fine-tuning {'raises' if raises else 'lowers'} the accuracy under attack "
        f"from {percent(robust[0])} to {percent(robust[1])}."
    )


def _change(results: Results) -> str:
    names = {"robust_accuracy_worst": "robust accuracy", "clean_accuracy": "clean accuracy"}
    change = results.metrics["difference"]
    parts = [
        f"{name} by {metric(change, key, signed=True)} ({p_value(change[f'{key}_permutation_p'])})"
        for key, name in names.items()
    ]
    return f"On the same images adversarial fine-tuning changes {listed(parts)}; permutation tests."


def _diagnostics(results: Results) -> str:
    """Which failed, and how many gave a warning or could not be decided."""
    checks = [result for of_model in results.checks.values() for result in of_model.values()]
    failed = failed_checks(results)
    verdicts = [result["verdict"] for result in checks]
    others = ((WARN, "gave a warning"), (INCONCLUSIVE, "could not be decided"))
    text = f"Of {len(checks)} diagnostics {listed(failed) if failed else 'none'} failed"
    for kind, words in others:
        if count := verdicts.count(kind):
            text += f", {count} {words}"
    return f"{text}."
