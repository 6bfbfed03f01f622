"""Confidence intervals and tests that know which images belong together.

Images of one patient (one group) are not independent. Where every group is a single image, a
proportion gets its Wilson interval; otherwise, and for whatever is no proportion (balanced
accuracy, log loss, a difference), whole groups are resampled with replacement and the percentiles
of the resampled metric are the interval: the cluster bootstrap (Field and Welsh 2007).
`scipy.stats.bootstrap` resamples single observations only, so it is written here. Where resampling
can't vary (one group, or no image that differs), a proportion falls back to Wilson with one vote
per group, anything else has no interval.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Interval = tuple[float, float] | None
BLOCK = 256  # resamples at a time: of them there are copies in float64 and int64


def wilson_interval(proportion: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a proportion seen in n independent trials (Wilson 1927).

    Sensible at 0, at 1 and for small n. Unlike `scipy.stats.binomtest(...).proportion_ci`, for any
    proportion: one vote per group needn't give a whole count.
    """
    z = stats.norm.ppf((1 + confidence) / 2)
    center = (proportion + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(proportion * (1 - proportion) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # At 0 and 1 center and half cancel exactly, but for rounding: 2.8e-17 is no lower end.
    low = 0.0 if proportion == 0 else float(center - half)
    high = 1.0 if proportion == 1 else float(center + half)
    return low, high


class ConfidenceIntervals:
    """Confidence intervals for one set of n images, by the rule at the top of this file."""

    def __init__(self, groups: Sequence, confidence: float, resamples: int, seed: int) -> None:
        """Draw the resamples, once: the metrics of two models on the same images are paired.

        Args:
            groups: (n,) any labels.
            confidence: level, such as 0.95.
            resamples: of the bootstrap; memory is 4 bytes x resamples x groups.
            seed: of the bootstrap.
        """
        self.confidence, self.resamples, self.seed = confidence, resamples, seed
        self.groups = np.unique(np.asarray(groups), return_inverse=True)[1]
        count, rng = self.groups.max() + 1, np.random.default_rng(seed)
        self._drawn = np.empty((resamples, count), np.float32)  # how often each group is drawn
        for block in np.array_split(self._drawn, -(-resamples // BLOCK)):
            block[:] = rng.multinomial(count, np.full(count, 1 / count), size=len(block))

    def proportion(self, hits: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
        """Of the proportion of ``hits`` (n,) bool within ``mask`` (n,) bool, which isn't empty."""
        mask = np.ones(len(hits), bool) if mask is None else mask
        proportion, groups = hits[mask].mean(), len(np.unique(self.groups[mask]))
        if groups == mask.sum():
            return wilson_interval(proportion, groups, self.confidence)
        return self._percentiles(self._resampled(hits, mask)) or wilson_interval(
            proportion, groups, self.confidence
        )

    def mean(self, values: np.ndarray) -> Interval:
        """Of the mean of ``values`` (n,)."""
        return self._percentiles(self._resampled(values, np.ones(len(values), bool)))

    def balanced(self, hits: np.ndarray, labels: np.ndarray) -> Interval:
        """Of the mean over classes of the proportion of ``hits`` in each."""
        return self._percentiles(
            np.mean([self._resampled(hits, labels == name) for name in np.unique(labels)], axis=0)
        )

    def difference(self, hits: np.ndarray, first: np.ndarray, second: np.ndarray) -> Interval:
        """Of the proportion of ``hits`` within ``first`` minus that within ``second``, (n,) bool.

        Both are of the same resamples: a group may have images in both.
        """
        return self._percentiles(self._resampled(hits, first) - self._resampled(hits, second))

    def statistic(self, function: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """Of what a function computes from weights; see `resample`."""
        return self._percentiles(self.resample(function))

    def resample(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(resamples,) values of a function: weights (r, n), how often each image is drawn -> (r,).

        For what is no mean over images, such as an area under the ROC curve.
        """
        blocks = np.array_split(self._drawn, -(-self.resamples // BLOCK))
        return np.concatenate([function(block[:, self.groups].astype(float)) for block in blocks])

    def sign_flip_p(self, change: np.ndarray) -> float:
        """Two-sided p value that a paired change (n,) is zero on average: a permutation test.

        The sums of whole groups change sign at random, for only groups are independent; exact where
        the resamples cover all combinations of signs.
        """
        sums = np.bincount(self.groups, weights=change)
        sums = sums[sums != 0]  # a group without change has no sign; a single one proves nothing
        if len(sums) < 2:
            return 1.0
        test = stats.permutation_test(
            (sums,),
            np.sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=self.resamples,
            batch=BLOCK,
            rng=np.random.default_rng(self.seed),
        )
        return float(test.pvalue)

    def _resampled(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        count, groups = self._drawn.shape[1], self.groups[mask]
        per_group = np.stack(
            [np.bincount(groups, values[mask], count), np.bincount(groups, minlength=count)], axis=1
        )  # (G, 2)
        # In each block float32 becomes float64.
        blocks = np.array_split(self._drawn, -(-self.resamples // BLOCK))
        sums, images = np.concatenate([block @ per_group for block in blocks]).T
        # A resample without any of these images gives no value: NaN here, dropped below.
        return np.divide(sums, images, out=np.full(len(images), np.nan), where=images > 0)

    def _percentiles(self, resampled: np.ndarray) -> Interval:
        resampled = resampled[np.isfinite(resampled)]
        if not len(resampled) or np.ptp(resampled) == 0:
            return None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p value that two models are correct equally often.

    first, second: (n,) bool, correct or not on the same images. Takes images for independent: where
    a patient has several, it is too small.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
