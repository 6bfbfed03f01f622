"""The metrics of metrics/evaluate.json, from tables of predictions; no model, no file, no figure.

What can't be computed is left out: no key, never NaN. Proportions are in [0, 1], log loss in nats, eps in pixel units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from stages.core.errors import InputError
from stages.core.predictions import CLEAN, classes_of, probabilities
from stages.evaluation.intervals import ConfidenceIntervals, Interval, mcnemar
from stages.evaluation.selection import (
    attacks_at,
    correct_under,
    eps_values,
    is_correct,
    select_predictions,
    worst_case_predictions,
)

BINS = 10  # of the reliability diagram, equal width
MIN_PROBABILITY = 1e-15  # probabilities are clipped as on Kaggle: a class given 0 costs -ln 1e-15 = 34.5, not infinity


@dataclass(frozen=True)
class EvaluationContext:
    """What every metric needs: eps in pixel units, and the intervals of the test images."""

    eps: float
    eps_grid: Sequence[float]
    intervals: ConfidenceIntervals


def with_interval(
    name: str, value: float | np.floating, interval: Interval = None
) -> dict[str, float]:
    """``{name: value}``, and ``<name>_low``, ``<name>_high`` where there is an interval."""
    ends = {f"{name}_low": interval[0], f"{name}_high": interval[1]} if interval else {}
    return {name: float(value), **ends}


def recalls(rows: pd.DataFrame) -> dict[str, float]:
    """Class -> fraction of its images that is classified correctly; classes without images are left out."""
    fractions = pd.Series(is_correct(rows)).groupby(rows["label"].to_numpy()).mean()
    return {name: float(fractions[name]) for name in classes_of(rows) if name in fractions}


def label_probabilities(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) the probability predicted for the label."""
    columns = [classes_of(rows).index(label) for label in rows["label"]]
    return probabilities(rows)[np.arange(len(rows)), columns]


def log_losses(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) minus the natural logarithm of the probability predicted for the label."""
    return -np.log(np.clip(label_probabilities(rows), MIN_PROBABILITY, 1))


def roc_auc(rows: pd.DataFrame) -> float | None:
    """Mean one-versus-rest area under the ROC curve over the classes that are in the rows; None if there is only one."""
    present = [name for name in classes_of(rows) if 0 < (rows["label"] == name).sum() < len(rows)]
    areas = [roc_auc_score(rows["label"] == name, rows[f"p_{name}"]) for name in present]
    return float(np.mean(areas)) if areas else None


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """Images binned by confidence: ``bin`` (center), ``confidence`` and ``accuracy`` (means), ``count``; no empty bins."""
    confidence = rows["confidence"].to_numpy(float)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = pd.DataFrame(
        {
            "bin": (bins + 0.5) / BINS,
            "confidence": confidence,
            "accuracy": is_correct(rows).astype(float),
        }
    )
    grouped = table.groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index()


def expected_calibration_error(rows: pd.DataFrame) -> float:
    """Mean over images of how far their bin's confidence lies from its accuracy (Naeini et al. 2015), in [0, 1]."""
    bins = reliability(rows)
    return float((bins["count"] * (bins["confidence"] - bins["accuracy"]).abs()).sum() / len(rows))


def initially_correct(minimum_eps: pd.DataFrame) -> pd.DataFrame:
    """The rows of minimum_eps.csv about correctly classified images; the others need no perturbation (eps 0, found)."""
    return minimum_eps[(minimum_eps["eps"] > 0) | (minimum_eps["found"] == 0)]


def min_eps_metrics(curve: pd.DataFrame) -> dict[str, Any]:
    """Median minimum eps of the correctly classified images, and where the band around the curve crosses one half.

    That interval of a median is Woodruff's (1952). Left out is what lies beyond the largest eps tried.

    Args:
        curve: rows of one model in plots/minimum_eps.csv.
    """
    crossing = {
        name: curve.loc[curve[name] >= 0.5, "eps"].min() for name in ("changed", "high", "low")
    }  # NaN: never
    result: dict[str, Any] = {"min_eps_images": int(curve["count"].max()) if len(curve) else 0}
    if np.isfinite(crossing["changed"]):
        interval = (crossing["high"], crossing["low"]) if np.isfinite(crossing["low"]) else None
        result |= with_interval("median_min_eps", crossing["changed"], interval)
    return result


def corruption_metrics(corruptions: pd.DataFrame) -> dict[str, Any]:
    """Accuracy under each common corruption, mean over its severities; those under attack have a table of their own."""
    corruptions = corruptions[corruptions["attack"] == CLEAN]
    accuracy = (
        pd.Series(is_correct(corruptions))
        .groupby(corruptions["corruption"].to_numpy(), sort=False)
        .mean()
    )
    return {
        "corrupted_accuracy": accuracy.to_dict(),
        "corrupted_images": int(corruptions["path"].nunique()),
    }


def distortion_metrics(table: pd.DataFrame, eps: float, pixel_values: int) -> dict[str, Any]:
    """Mean PSNR, in dB, and SSIM of each attack's adversarial examples at eps: the higher, the less visible.

    PSNR is 10 log10(D / l2^2) of an image of D pixel values in [0, 1]. What isn't misclassified or not perturbed is none; an
    attack without adversarial examples is left out.
    """
    psnr, ssim = {}, {}
    for attack in attacks_at(table, eps):
        rows = select_predictions(table, attack, eps)
        rows = rows[~is_correct(rows) & (rows["l2"] > 0).to_numpy()]
        if len(rows):
            psnr[attack] = float(
                (10 * np.log10(pixel_values / rows["l2"].to_numpy(float) ** 2)).mean()
            )
            ssim[attack] = float(rows["ssim"].mean())
    return {"mean_psnr": psnr, "mean_ssim": ssim}


def gradient_metrics(gradients: pd.DataFrame, context: EvaluationContext) -> dict[str, float]:
    """Mean share of the squared input gradient in the central quarter of the image. gradients: gradients.csv."""
    shares = gradients.sort_values("path")["central_share"].to_numpy(float)
    return with_interval("central_gradient_share", shares.mean(), context.intervals.mean(shares))


def second_norm_metrics(
    table: pd.DataFrame, second: pd.DataFrame | None, context: EvaluationContext
) -> dict[str, float]:
    """Robust accuracy in the other norm, and under both budgets at once: correct under every attack of either.

    Args:
        table: predictions.csv, with the rows of the transfer attacks.
        second: second_norm.csv; None: no such attack was run.
        context: eps of the first norm, and the intervals.
    """
    if second is None:
        return {}
    eps = max(eps_values(second))
    robust = is_correct(worst_case_predictions(second, eps))
    both = robust & is_correct(worst_case_predictions(table, context.eps))
    result = {"second_eps": eps}
    result |= with_interval(
        "robust_accuracy_second_norm", robust.mean(), context.intervals.proportion(robust)
    )
    return result | with_interval(
        "robust_accuracy_both_norms", both.mean(), context.intervals.proportion(both)
    )


def model_metrics(table: pd.DataFrame, context: EvaluationContext) -> dict[str, Any]:
    """All metrics of one model.

    Raises:
        InputError: when no attack was run at ``context.eps``.
    """
    attacks = attacks_at(table, context.eps)
    if not attacks:
        found = ", ".join(f"{eps:g}" for eps in eps_values(table)) or "none"
        raise InputError(
            f"attack.eps: expected predictions under attack at {context.eps:g}, got eps {found}"
        )
    clean, worst = select_predictions(table), worst_case_predictions(table, context.eps)
    result = _clean_metrics(clean, context) | _worst_case_metrics(clean, worst, context)
    outcomes = {attack: correct_under(table, attack, context.eps) for attack in attacks}
    result["robust_accuracy"] = {
        attack: float(correct.mean()) for attack, correct in outcomes.items()
    }
    result["attacked_images"] = {attack: len(correct) for attack, correct in outcomes.items()}
    if (initially := is_correct(clean)).any():
        rates: dict[str, float] = {}
        for attack, correct in outcomes.items():
            interval = context.intervals.proportion(~correct, initially)
            rates |= with_interval(attack, (~correct)[initially].mean(), interval)
        result["attack_success_rate"] = rates
    if all(attacks_at(table, eps) for eps in context.eps_grid):
        robust = [is_correct(worst_case_predictions(table, eps)) for eps in context.eps_grid]
        over_grid = np.mean(robust, axis=0)
        result |= with_interval(
            "expected_robustness", over_grid.mean(), context.intervals.mean(over_grid)
        )
    return result


def _clean_metrics(clean: pd.DataFrame, context: EvaluationContext) -> dict[str, Any]:
    intervals, labels, correct = context.intervals, clean["label"].to_numpy(), is_correct(clean)
    losses, area = log_losses(clean), roc_auc(clean)
    f1 = f1_score(
        labels, clean["prediction"], labels=np.unique(labels), average="macro", zero_division=0
    )
    return {
        "clean_correct": int(correct.sum()),
        **with_interval("clean_accuracy", correct.mean(), intervals.proportion(correct)),
        **with_interval(
            "balanced_accuracy",
            np.mean([*recalls(clean).values()]),
            intervals.balanced(correct, labels),
        ),
        **{
            f"recall_{name}": recall for name, recall in recalls(clean).items()
        },  # with intervals in plots/per_class.csv
        "macro_f1": float(f1),
        **with_interval("log_loss", losses.mean(), intervals.mean(losses)),
        **({"auc": area} if area is not None else {}),
        "ece": expected_calibration_error(clean),
    }


def _worst_case_metrics(
    clean: pd.DataFrame, worst: pd.DataFrame, context: EvaluationContext
) -> dict[str, Any]:
    intervals, labels, correct = context.intervals, clean["label"].to_numpy(), is_correct(worst)
    balanced = np.mean([*recalls(worst).values()])
    result = {
        "ece_worst": expected_calibration_error(worst),
        **with_interval("robust_accuracy_worst", correct.mean(), intervals.proportion(correct)),
        **with_interval(
            "balanced_robust_accuracy_worst", balanced, intervals.balanced(correct, labels)
        ),
    }
    if (initially := is_correct(clean)).any():
        interval = intervals.proportion(~correct, initially)
        result |= with_interval("attack_success_rate_worst", (~correct)[initially].mean(), interval)
    return result


def paired_difference(
    clean: pd.DataFrame, adv: pd.DataFrame, context: EvaluationContext
) -> dict[str, float]:
    """Adversarially fine-tuned minus clean model on the same images.

    ``permutation_p`` is that of the groups' signs. ``mcnemar_p`` takes images for independent, and is too small where a patient
    has several.

    Raises:
        InputError: when the two tables are about different images.
    """
    columns = ["path", "label", "group"]
    if not select_predictions(clean)[columns].equals(select_predictions(adv)[columns]):
        raise InputError(
            "adv: expected predictions for the same images, labels and groups as clean, got others"
        )
    result: dict[str, float] = {}
    for name, eps in (("clean_accuracy", 0.0), ("robust_accuracy_worst", context.eps)):
        before, after = (
            is_correct(worst_case_predictions(clean, eps)),
            is_correct(worst_case_predictions(adv, eps)),
        )
        change = after.astype(float) - before
        result |= with_interval(name, change.mean(), context.intervals.mean(change))
        result[f"{name}_permutation_p"] = context.intervals.sign_flip_p(change)
        result[f"{name}_mcnemar_p"] = mcnemar(before, after)
    return result


def baselines(rows: pd.DataFrame) -> dict[str, float]:
    """What constant predictions reach on the same images: always the majority class; always the class frequencies."""
    frequencies = rows["label"].value_counts(normalize=True).to_numpy()
    return {
        "majority_rate": float(frequencies.max()),
        "prior_log_loss": float(stats.entropy(frequencies)),
    }
