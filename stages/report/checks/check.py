"""A diagnostic: what is computed, from which limit on it is bad, why, and what to do then."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.report.results import ModelResults, Results

PASS, WARN, FAIL, INFO, INCONCLUSIVE = "PASS", "WARN", "FAIL", "INFO", "INCONCLUSIVE"


class Measured(NamedTuple):
    """A value, the number of images (or epochs) that it was computed on, and its power.

    ``power``: of the faults among those images the share that would have been seen.
    """

    value: float
    n: int
    power: float = 1.0


NO_DATA = Measured(math.nan, 0)
Compute = Callable[[Results, ModelResults], Measured | None]


@dataclass(frozen=True)
class Check:
    """One diagnostic.

    Attributes:
        id: D1, D2, ...
        title: the measured quantity.
        compute: its value for one model; None where it does not apply to that model.
        reason: why it is looked at.
        remedy: what to do on WARN, FAIL or INCONCLUSIVE.
        warn: WARN above.
        fail: FAIL above.
        rate: the value is a fraction of images. A rate of up to 3 / n may show in none of n images
            (the rule of three, 95 %), so that fewer than 3 / limit images can't PASS; n × power
            counts, for what isn't seen can't show.
        must_exceed: FAIL at or below ``fail`` instead of above.
        info: the models for which it is a property, no fault.
    """

    id: str
    title: str
    compute: Compute
    reason: str
    remedy: str
    warn: float | None = None
    fail: float | None = None
    rate: bool = False
    must_exceed: bool = False
    info: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Images without which a rate can't PASS."""
        limits = [limit for limit in (self.warn, self.fail) if limit]
        return math.ceil(3 / min(limits)) if self.rate and limits else 0

    @property
    def threshold(self) -> str:
        """``> 0.01 WARN, > 0.1 FAIL; n ≥ 300``."""
        sign = "≤" if self.must_exceed else ">"
        limits = {WARN: self.warn, FAIL: self.fail}
        texts = [f"{sign} {limit:g} {name}" for name, limit in limits.items() if limit is not None]
        return ", ".join(texts) + (f"; n ≥ {self.needed}" if self.rate else "")

    def verdict(self, model: str, measured: Measured) -> str:
        """PASS, WARN, FAIL, INFO or INCONCLUSIVE."""
        value, n, power = measured
        if n == 0 or not math.isfinite(value):
            return INCONCLUSIVE
        if model in self.info or (self.warn is None and self.fail is None):
            return INFO
        if self.fail is not None and (
            value <= self.fail if self.must_exceed else value > self.fail
        ):
            return FAIL
        if self.warn is not None and value > self.warn:
            return WARN
        return INCONCLUSIVE if n * power < self.needed else PASS

    def result(self, results: Results, model: ModelResults) -> dict[str, Any] | None:
        """As metrics/diagnostics.json keeps it; None where it does not apply."""
        measured = self.compute(results, model)
        if measured is None:
            return None
        value = {"value": float(measured.value)} if math.isfinite(measured.value) else {}
        if measured.power < 1:
            value["power"] = float(measured.power)
        return {
            "verdict": self.verdict(model.name, measured),
            "threshold": self.threshold,
            "n": int(measured.n),
            "name": self.title,
            **value,
        }


def check(id: str, title: str, **record: Any) -> Callable[[Compute], Check]:  # noqa: A002
    """Make a `Check` of a function that computes its value."""

    def make(compute: Compute) -> Check:
        return Check(id, title, compute, **record)

    return make


def measured(table: str, name: str) -> Compute:
    """The value that attack_eval has measured, a row of one of its tables."""

    def read(results: Results, model: ModelResults) -> Measured:
        rows = model.table(table)
        rows = rows[rows["check"] == name]
        return Measured(rows["value"].iloc[0], int(rows["n"].iloc[0])) if len(rows) else NO_DATA

    return read
