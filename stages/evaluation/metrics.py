"""Numbers from tables of predictions (see `stages.core.predictions`); no model, no file, no picture.

**Intervals.** Photographs of one patient (one group) aren't independent. Where every group is a single photograph, a share of
photographs gets its Wilson interval; otherwise, and for all that is no share (balanced accuracy, log loss, a difference),
whole groups are drawn with replacement and the percentiles of the resampled figure are the interval. Where resampling can't
vary (one group, or no photograph that differs), a share falls back to Wilson with one vote per group, anything else has no
interval. What can't be computed is left out: no key, no row, never NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from stages.core.predictions import CLEAN, PredictionsError, classes_of, probabilities

WORST = "worst"  # not an attack: per photograph the most harmful of all that were run
BINS = 10  # of the reliability diagram, equal width
SMALLEST_PROBABILITY = 1e-15  # Kaggle's bound: a class given probability 0 costs 34.5, not infinity
TOLERANCE = 1e-4  # relative; tables hold eps to 6 digits

Interval = tuple[float, float] | None


def answers(table: pd.DataFrame, attack: str = CLEAN, eps: float = 0.0) -> pd.DataFrame:
    """(n rows) what the model answered under one attack at one budget, one row per image, sorted by path."""
    rows = table[(table["attack"] == attack) & np.isclose(table["eps"], eps, rtol=TOLERANCE, atol=0)]
    return rows.sort_values("path", ignore_index=True)


def worst_case_predictions(table: pd.DataFrame, eps: float) -> pd.DataFrame:
    """(n rows) per image the most harmful answer within a budget, sorted by path: a wrong one if there is any, then the lowest
    margin. Attacks at smaller budgets count, an image within 2/255 is within 4/255; so does the image as it is."""
    rows = table[table["eps"] <= eps * (1 + TOLERANCE)]
    rows = rows.assign(right=right(rows)).sort_values(["path", "right", "margin", "eps", "attack"])
    return rows.drop_duplicates("path").drop(columns="right").reset_index(drop=True)


def right(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) bool: the answer is the label."""
    return (rows["label"] == rows["prediction"]).to_numpy()


def correct_under_attack(table: pd.DataFrame, attack: str, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool twice, images sorted by path: still right under the attack, and whether it was run on the image at all."""
    rows = answers(table, attack, eps)
    among = answers(table)["path"].isin(rows["path"]).to_numpy()
    hits = np.zeros(len(among), bool)
    hits[among] = right(rows)
    return hits, among


def budgets(table: pd.DataFrame) -> list[float]:
    """Every eps that some attack was run at, ascending, without 0."""
    return sorted(set(table.loc[table["attack"] != CLEAN, "eps"]))


def attacks_at(table: pd.DataFrame, eps: float) -> list[str]:
    """The attacks run at a budget, in the order of the table."""
    return list(dict.fromkeys(table.loc[np.isclose(table["eps"], eps, rtol=TOLERANCE, atol=0), "attack"]))


def wilson_interval(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a share seen in n independent trials (Wilson 1927); sensible at 0, at 1 and for small n."""
    z = stats.norm.ppf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


class ConfidenceIntervals:
    """Intervals for one set of images, by the rule at the top of this file.

    groups: (n,) any labels. Draws are seeded and made once, so that figures of two models on the same images are paired.
    Memory: 4 bytes x resamples x n.
    """

    def __init__(self, groups: Sequence, confidence: float, resamples: int, seed: int) -> None:
        self.confidence = confidence
        self.groups = np.unique(np.asarray(groups), return_inverse=True)[1]
        count = self.groups.max() + 1
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self.weights = draws.astype(np.float32)[:, self.groups]  # (resamples, n): how often each image is drawn

    def share(self, hits: np.ndarray, among: np.ndarray | None = None) -> Interval:
        """Of the share of ``hits`` (n,) bool among ``among`` (n,) bool; None where there is no image."""
        among = np.ones(len(hits), bool) if among is None else among
        if not among.any():
            return None
        share, groups = hits[among].mean(), len(np.unique(self.groups[among]))
        if groups == among.sum():
            return wilson_interval(share, groups, self.confidence)
        return self._percentiles(self._resampled(hits, among)) or wilson_interval(share, groups, self.confidence)

    def mean(self, values: np.ndarray) -> Interval:
        """Of the mean of ``values`` (n,)."""
        return self._percentiles(self._resampled(values, np.ones(len(values), bool)))

    def balanced(self, hits: np.ndarray, labels: np.ndarray) -> Interval:
        """Of the mean over classes of the share of ``hits`` in each."""
        return self._percentiles(np.mean([self._resampled(hits, labels == name) for name in np.unique(labels)], axis=0))

    def _resampled(self, values: np.ndarray, among: np.ndarray) -> np.ndarray:
        weights = self.weights[:, among]
        total = weights.sum(axis=1)
        # A draw without any of these images says nothing about them: NaN here, dropped below.
        return np.divide(weights @ values[among].astype(float), total, out=np.full(len(total), np.nan), where=total > 0)

    def _percentiles(self, resampled: np.ndarray) -> Interval:
        resampled = resampled[np.isfinite(resampled)]
        if not len(resampled) or np.ptp(resampled) == 0:
            return None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return float(low), float(high)


@dataclass(frozen=True)
class EvaluationContext:
    """What every figure needs: budgets in pixel units, and the intervals of the test images."""

    eps: float
    eps_grid: Sequence[float]
    intervals: ConfidenceIntervals


def _put(result: dict[str, Any], name: str, value: float, interval: Interval = None) -> None:
    result[name] = float(value)
    if interval:
        result[f"{name}_low"], result[f"{name}_high"] = interval


def recalls(rows: pd.DataFrame) -> dict[str, float]:
    """Class -> share of its images answered rightly; classes without images are left out."""
    shares = pd.Series(right(rows)).groupby(rows["label"].to_numpy()).mean()
    return {name: float(shares[name]) for name in classes_of(rows) if name in shares}


def log_losses(rows: pd.DataFrame) -> np.ndarray:
    """(rows,) minus the natural logarithm of the probability given to the label."""
    columns = [classes_of(rows).index(label) for label in rows["label"]]
    return -np.log(np.clip(probabilities(rows)[np.arange(len(rows)), columns], SMALLEST_PROBABILITY, 1))


def auc(rows: pd.DataFrame) -> float | None:
    """Mean one-versus-rest area under the ROC curve over the classes that are in the rows; None if there is only one."""
    present = [name for name in classes_of(rows) if 0 < (rows["label"] == name).sum() < len(rows)]
    areas = [roc_auc_score(rows["label"] == name, rows[f"p_{name}"]) for name in present]
    return float(np.mean(areas)) if areas else None


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """Images binned by confidence: ``bin`` (centre), ``confidence`` and ``accuracy`` (means), ``count``; no empty bins."""
    confidence = rows["confidence"].to_numpy(float)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": (bins + 0.5) / BINS, "confidence": confidence, "accuracy": right(rows).astype(float)})
    grouped = table.groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index()


def expected_calibration_error(rows: pd.DataFrame) -> float:
    """Mean over images of how far their bin's confidence lies from its accuracy (Naeini et al. 2015), in [0, 1]."""
    bins = reliability(rows)
    return float((bins["count"] * (bins["confidence"] - bins["accuracy"]).abs()).sum() / len(rows))


def _right_at_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of minimum_eps.csv about images that are right as they are; the others need no change (eps 0, found)."""
    return table[(table["eps"] > 0) | (table["found"] == 0)]


def smallest_budgets(table: pd.DataFrame) -> dict[str, Any]:
    """Of the images that are right as they are: half of them are changed within ``median_min_eps`` (the lower middle one)."""
    rows = _right_at_first(table).sort_values(["eps", "found"])
    result: dict[str, Any] = {"min_eps_images": len(rows)}
    if len(rows) and rows["found"].iloc[(len(rows) - 1) // 2]:
        result["median_min_eps"] = float(rows["eps"].iloc[(len(rows) - 1) // 2])
    return result


def corrupted(table: pd.DataFrame) -> dict[str, Any]:
    """Share still right under each common defect, mean over its severities."""
    shares = pd.Series(right(table)).groupby(table["corruption"].to_numpy(), sort=False).mean()
    return {"corrupted_accuracy": shares.to_dict(), "corrupted_images": int(table["path"].nunique())}


def model_metrics(table: pd.DataFrame, setting: EvaluationContext) -> dict[str, Any]:
    """Every figure of one model; shares in [0, 1], log loss in nats, eps in pixel units.

    Raises PredictionsError when no attack was run at ``setting.eps``.
    """
    attacks = attacks_at(table, setting.eps)
    if not attacks:
        found = ", ".join(f"{eps:g}" for eps in budgets(table)) or "none"
        raise PredictionsError(f"attack.eps: expected predictions under attack at {setting.eps:g}, got budgets {found}")
    intervals, clean, worst = setting.intervals, answers(table), worst_case_predictions(table, setting.eps)
    labels, clean_right, worst_right = clean["label"].to_numpy(), right(clean), right(worst)
    result: dict[str, Any] = {"clean_correct": int(clean_right.sum())}
    _put(result, "clean_accuracy", clean_right.mean(), intervals.share(clean_right))
    _put(result, "balanced_accuracy", np.mean([*recalls(clean).values()]), intervals.balanced(clean_right, labels))
    for name, recall in recalls(clean).items():
        _put(result, f"recall_{name}", recall)  # with intervals in plots/per_class.csv
    _put(result, "macro_f1", f1_score(labels, clean["prediction"], labels=np.unique(labels), average="macro", zero_division=0))
    _put(result, "log_loss", log_losses(clean).mean(), intervals.mean(log_losses(clean)))
    if (area := auc(clean)) is not None:
        _put(result, "auc", area)
    _put(result, "ece", expected_calibration_error(clean))
    _put(result, "ece_worst", expected_calibration_error(worst))
    _put(result, "robust_accuracy_worst", worst_right.mean(), intervals.share(worst_right))
    _put(
        result,
        "balanced_robust_accuracy_worst",
        np.mean([*recalls(worst).values()]),
        intervals.balanced(worst_right, labels),
    )
    attacked = {attack: correct_under_attack(table, attack, setting.eps) for attack in attacks}
    result["robust_accuracy"] = {attack: float(hits[among].mean()) for attack, (hits, among) in attacked.items()}
    result["attacked_images"] = {attack: int(among.sum()) for attack, (_, among) in attacked.items()}
    if clean_right.any():
        result["attack_success_rate"] = {
            attack: float((~hits)[clean_right & among].mean())
            for attack, (hits, among) in attacked.items()
            if (clean_right & among).any()
        }
        _put(
            result,
            "attack_success_rate_worst",
            (~worst_right)[clean_right].mean(),
            intervals.share(~worst_right, among=clean_right),
        )
    if all(attacks_at(table, eps) for eps in setting.eps_grid):
        robust = [right(worst_case_predictions(table, eps)) for eps in setting.eps_grid]
        mean_over_grid = np.mean(robust, axis=0)
        _put(result, "expected_robustness", mean_over_grid.mean(), intervals.mean(mean_over_grid))
    return result


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p value that two models, (n,) right or not on the same images, are right equally often."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    disagree = only_first + only_second
    return float(stats.binomtest(only_first, disagree).pvalue) if disagree else 1.0


def difference(clean: pd.DataFrame, adv: pd.DataFrame, setting: EvaluationContext) -> dict[str, float]:
    """Adversarially trained minus clean model on the same images, paired. McNemar counts images, not groups: where a patient
    has several, its p is too small and the interval is what counts.

    Raises PredictionsError when the two tables are about different images.
    """
    columns = ["path", "label", "group"]
    if not answers(clean)[columns].equals(answers(adv)[columns]):
        raise PredictionsError("adv: expected predictions for the same images, labels and groups as clean, got others")
    result: dict[str, float] = {}
    for name, eps in (("clean_accuracy", 0.0), ("robust_accuracy_worst", setting.eps)):
        before, after = right(worst_case_predictions(clean, eps)), right(worst_case_predictions(adv, eps))
        change = after.astype(float) - before
        _put(result, name, change.mean(), setting.intervals.mean(change))
        result[f"{name}_mcnemar_p"] = mcnemar(before, after)
    return result


def baselines(rows: pd.DataFrame) -> dict[str, float]:
    """What the best constant answer reaches on the same images: always the most frequent class, always the class shares."""
    shares = rows["label"].value_counts(normalize=True).to_numpy()
    return {"majority_rate": float(shares.max()), "prior_log_loss": float(stats.entropy(shares))}


def robustness_table(model: str, table: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,eps,attack,accuracy,low,high,count: each attack at each of its budgets, and ``worst`` from eps 0 on."""
    whole = np.ones(len(answers(table)), bool)
    cases = [(0.0, CLEAN, right(answers(table)), whole), (0.0, WORST, right(answers(table)), whole)]
    for eps in budgets(table):
        cases += [(eps, attack, *correct_under_attack(table, attack, eps)) for attack in attacks_at(table, eps)]
        cases.append((eps, WORST, right(worst_case_predictions(table, eps)), whole))
    rows = [
        (model, eps, attack, hits[among].mean(), *setting.intervals.share(hits, among), int(among.sum()))
        for eps, attack, hits, among in cases
    ]
    return pd.DataFrame(rows, columns=["model", "eps", "attack", "accuracy", "low", "high", "count"])


def _clean_and_worst(table: pd.DataFrame, setting: EvaluationContext) -> list[tuple[str, pd.DataFrame]]:
    return [(CLEAN, answers(table)), (WORST, worst_case_predictions(table, setting.eps))]


def confusion_table(model: str, table: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,attack,actual,predicted,count,share: every cell, also the empty ones; share is of the actual class."""
    classes, parts = classes_of(table), []
    for attack, rows in _clean_and_worst(table, setting):
        counts = confusion_matrix(rows["label"], rows["prediction"], labels=classes)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [(a, p, counts[i, j], shares[i, j]) for i, a in enumerate(classes) for j, p in enumerate(classes)]
        parts.append(pd.DataFrame(cells, columns=["actual", "predicted", "count", "share"]).assign(attack=attack))
    return pd.concat(parts).assign(model=model)[["model", "attack", "actual", "predicted", "count", "share"]]


def per_class_table(model: str, table: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,attack,class,recall,low,high,count: share of each class answered rightly, without attack and in the worst case."""
    parts = []
    for attack, rows in _clean_and_worst(table, setting):
        for name, recall in recalls(rows).items():
            among = (rows["label"] == name).to_numpy()
            parts.append((model, attack, name, recall, *setting.intervals.share(right(rows), among), int(among.sum())))
    return pd.DataFrame(parts, columns=["model", "attack", "class", "recall", "low", "high", "count"])


def reliability_table(model: str, table: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,attack,bin,confidence,accuracy,count: without attack and in the worst case."""
    parts = [reliability(rows).assign(attack=attack) for attack, rows in _clean_and_worst(table, setting)]
    return pd.concat(parts).assign(model=model)[["model", "attack", "bin", "confidence", "accuracy", "count"]]


def same_images_table(model: str, table: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """Rows like those of `robustness_table`: pgd at the headline budget on the images of the attacks that saw only some, under
    the name of the last attack that saw these."""
    (hits, tried), rows = correct_under_attack(table, "pgd", setting.eps), {}
    for attack in attacks_at(table, setting.eps):
        among = correct_under_attack(table, attack, setting.eps)[1]
        if tried.all() and not among.all():
            interval = setting.intervals.share(hits, among)
            rows[among.tobytes()] = (model, setting.eps, attack, hits[among].mean(), *interval, int(among.sum()))
    return pd.DataFrame(rows.values(), columns=["model", "eps", "attack", "accuracy", "low", "high", "count"])


def minimum_eps_table(model: str, table: pd.DataFrame, smallest: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,eps,changed,low,high,count: share of the images that are right as they are, changed within eps; a row for each eps
    at which it grows, one for 0 and one for the largest eps tried. smallest: minimum_eps.csv."""
    rows, paths = _right_at_first(smallest), answers(table)["path"]
    needed = paths.map(rows.set_index("path")["eps"].where(rows.set_index("path")["found"] == 1, np.inf)).to_numpy()
    among = paths.isin(rows["path"]).to_numpy()  # of the others nothing is known: NaN, within no eps
    cases = [(eps, needed <= eps) for eps in sorted({0.0, *rows["eps"]})] if len(rows) else []
    cells = [(model, eps, hits[among].mean(), *setting.intervals.share(hits, among), len(rows)) for eps, hits in cases]
    cells[:1] = [(*cell[:3], 0.0, 0.0, cell[5]) for cell in cells[:1]]  # without a change none is changed, for certain
    return pd.DataFrame(cells, columns=["model", "eps", "changed", "low", "high", "count"])


def corruptions_table(model: str, table: pd.DataFrame, corrupted: pd.DataFrame, setting: EvaluationContext) -> pd.DataFrame:
    """model,corruption,severity,accuracy,low,high,count: the same images without a defect (``none``, 0), then with each one.

    corrupted: corruptions.csv.
    """
    clean, keys = answers(table), ["corruption", "severity"]
    among = clean["path"].isin(corrupted["path"]).to_numpy()
    without = clean[among].assign(corruption=CLEAN, severity=0)
    cells = []
    for (name, severity), rows in pd.concat([without, corrupted]).groupby(keys, sort=False):
        hits = clean["path"].isin(rows.loc[right(rows), "path"]).to_numpy()
        low, high = setting.intervals.share(hits, among)
        cells.append((model, name, severity, hits[among].mean(), low, high, len(rows)))
    return pd.DataFrame(cells, columns=["model", *keys, "accuracy", "low", "high", "count"])
