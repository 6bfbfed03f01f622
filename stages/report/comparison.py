"""What is said of both models together: baselines, and the difference on the same images."""

from typing import Any

from scipy import stats

from stages.core.predictions import is_correct
from stages.report.intervals import mcnemar
from stages.report.results import Results, with_interval
from stages.report.sections.tolerated_eps import ratio_metrics


def overall_metrics(results: Results) -> dict[str, Any]:
    """ε, n, what constant predictions reach on the same images; difference and ratio, paired."""
    frequencies = results.images["label"].value_counts(normalize=True).to_numpy()
    return {
        "eps": results.eps,
        "n": results.n,
        "groups": results.groups,
        "majority_rate": results.majority_rate,
        "prior_log_loss": float(stats.entropy(frequencies)),
        "difference": paired_difference(results),
        **ratio_metrics(results),
    }


def paired_difference(results: Results) -> dict[str, float]:
    """Adversarially fine-tuned minus clean model on the same images.

    ``permutation_p`` is that of the groups' signs. ``mcnemar_p`` takes images for independent, and
    is too small where a patient has several.
    """
    intervals = results.intervals
    result: dict[str, float] = {}
    for name, eps in (("clean_accuracy", 0.0), ("robust_accuracy_worst", results.eps)):
        before, after = (is_correct(results.worst(m, eps)) for m in results.models.values())
        change = after.astype(float) - before
        result |= with_interval(name, change.mean(), intervals.mean(change))
        result[f"{name}_permutation_p"] = intervals.sign_flip_p(change)
        result[f"{name}_mcnemar_p"] = mcnemar(before, after)
    return result
