"""The ε that a model tolerates: where its robust accuracy falls to that of the majority class.

Beyond it the model is no better than a constant answer. The robustness curve is interpolated
linearly between the ε that were tried; where it stays above, the value lies beyond the largest one:
it is censored, and infinite here. Intervals and the ratio of the two models are of the same
resamples of the patients.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.core.norms import Norm
from stages.core.predictions import eps_values, is_correct
from stages.report.blocks import Block, Items, Text
from stages.report.formatting import percent
from stages.report.results import ModelResults, Results, with_interval
from stages.report.section import Section


def crossing(eps: np.ndarray, accuracy: np.ndarray, level: np.ndarray) -> np.ndarray:
    """(r,) the smallest ε at which a curve is not above its level; infinite where there is none.

    Args:
        eps: (E,) ascending, from 0.
        accuracy: (r, E).
        level: (r,).
    """
    above = accuracy - level[:, None]
    reached = above <= 0
    after = reached.argmax(axis=1)  # 0 also where none is
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(above))
    start, end = above[rows, before], above[rows, after]
    fraction = np.divide(start, start - end, out=np.zeros(len(above)), where=start > end)
    found = eps[before] + fraction * (eps[after] - eps[before])
    return np.where(reached.any(axis=1), found, math.inf)


def tolerated(results: Results, model: ModelResults, weights: np.ndarray) -> np.ndarray:
    """(r,) the tolerated ε for weights of the images (r, n); infinite beyond the largest ε tried.

    The class whose frequency is the level stays that of all test images.
    """
    eps = np.array([0.0, *eps_values(model.rows)])
    correct = np.array([is_correct(results.worst(model, e)) for e in eps])  # (E, n)
    labels = results.images["label"]
    majority = (labels == labels.value_counts().idxmax()).to_numpy()
    total = weights.sum(axis=1)
    return crossing(eps, weights @ correct.T / total[:, None], weights @ majority / total)


def interval_of(resampled: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentiles of values that may be infinite: none lies between two of them."""
    ordered, tail = np.sort(resampled), (1 - confidence) / 2
    left_out = math.floor(round(tail * len(ordered), 9))  # at each end
    return float(ordered[left_out]), float(ordered[-1 - left_out])


def bounded(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    """The metric with its interval; where an end is infinite, ``<name>_at_least`` in its place."""
    low, high = interval
    if math.isfinite(high):
        return with_interval(name, value, interval)
    found = {name: value} if math.isfinite(value) else {}
    return {**found, **({f"{name}_at_least": low} if math.isfinite(low) else {})}


def both(results: Results, model: ModelResults) -> tuple[np.ndarray, np.ndarray]:
    """The tolerated ε of all images (1,), and of the resamples (resamples,)."""
    everything = np.ones((1, results.n))
    resampled = results.intervals.resample(lambda weights: tolerated(results, model, weights))
    return tolerated(results, model, everything), resampled


def metrics(results: Results, model: ModelResults) -> dict[str, Any]:
    """The tolerated ε with its interval, and the largest ε tried."""
    value, resampled = both(results, model)
    interval = interval_of(resampled, results.intervals.confidence)
    found = bounded("tolerated_eps", float(value[0]), interval)
    return found | {"largest_eps": max(eps_values(model.rows))}


def ratio_bounds(
    first: np.ndarray, second: np.ndarray, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """(r,), (r,): at least and at most how many times as much the second model tolerates.

    They differ where one lies beyond the largest ε tried. Infinite where the first is 0.
    """
    pairs = ((np.minimum(second, largest), first), (second, np.minimum(first, largest)))
    low, high = (
        np.divide(above, below, out=np.full(len(below), math.inf), where=below > 0)
        for above, below in pairs
    )
    return low, high


def ratio_metrics(results: Results) -> dict[str, float]:
    """The tolerated ε of the second model by that of the first, a lower bound where censored.

    Nothing where the first one is 0 or lies beyond the largest ε tried.
    """
    (first, firsts), (second, seconds) = (both(results, m) for m in results.models.values())
    largest = max(max(eps_values(model.rows)) for model in results.models.values())
    if not 0 < first[0] < math.inf:
        return {}
    _, value = ratio_bounds(first, second, largest)
    bounds = ratio_bounds(firsts, seconds, largest)
    low, high = (interval_of(values, results.intervals.confidence) for values in bounds)
    return bounded("tolerated_eps_ratio", float(value[0]), (low[0], high[1]))


def level_text(norm: Norm, eps: float) -> str:
    """``1.83/255``, in the unit of the charts."""
    unit = f"/{norm.axis_scale}" if norm.axis_scale > 1 else ""
    return f"{eps * norm.axis_scale:.2f}{unit}"


def sentences(results: Results) -> list[str]:
    """Per model the tolerated ε, and the ratio."""
    norm, texts = results.budget.norm, []
    for model in results.models.values():
        values = results.metrics[model.name]
        beyond = f"beyond ε = {norm.format(values['largest_eps'])}"
        text = f"{model.label}: "
        text += level_text(norm, values["tolerated_eps"]) if "tolerated_eps" in values else beyond
        if "tolerated_eps_low" in values:
            ends = [level_text(norm, values[f"tolerated_eps_{end}"]) for end in ("low", "high")]
            text += f" [{', '.join(ends)}]"
        elif "tolerated_eps_at_least" in values:
            text += f" [{level_text(norm, values['tolerated_eps_at_least'])}, beyond]"
        texts.append(f"{text}.")
    if factor := ratio_text(results.metrics):
        second = results.models["adv"].label
        texts.append(f"{second} tolerates {factor} times as much as standard training.")
    return texts


def ratio_text(metrics: Mapping[str, Any]) -> str:
    """``3.4 [2.6, 4.5]``, or ``at least 3.4``, its lower end; "" where there is no ratio."""
    name = "tolerated_eps_ratio"
    if f"{name}_at_least" in metrics:
        return f"at least {metrics[f'{name}_at_least']:.1f}"
    if name not in metrics:
        return ""
    low, high = (f"{metrics[f'{name}_{end}']:.1f}" for end in ("low", "high"))
    return f"{metrics[name]:.1f} [{low}, {high}]"


def blocks(results: Results) -> list[Block]:
    """What it is, and the numbers."""
    return [
        Text(
            "The ε at which the robust accuracy falls to that of the majority class "
            f"({percent(results.majority_rate)}), interpolated on the robustness curve, "
            f"with {results.level} confidence intervals:"
        ),
        Items(sentences(results)),
    ]


SECTION = Section("tolerated-eps", "The ε that a model tolerates", blocks, metrics=metrics, level=3)
