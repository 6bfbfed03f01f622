"""What a diagnostic says: the verdicts D1 to D27 and their names. Needs neither a model nor a table."""

import math
from dataclasses import asdict, dataclass
from typing import Any

PASS, WARN, FAIL, INFO, UNKNOWN = "PASS", "WARN", "FAIL", "INFO", "not enough to say"
NAMES = {
    "D1": "no change exceeds the budget, also as a picture of 8 bits",
    "D2": "the model gives logits, not probabilities",
    "D3": "same picture, same answer, alone or in a batch",
    "D4": "an attack leaves the model as it was, in eval mode",
    "D5": "pictures without a gradient",
    "D6": "gradient against finite differences",
    "D7": "change of the loss under random noise",
    "D8": "a stronger attack breaks no less",
    "D9": "broken without gradients only (Square, transfer)",
    "D10": "broken by random noise but not by PGD",
    "D11": "accuracy never rises with the budget",
    "D12": "still right where every value may change by a quarter of its range",
    "D13": "broken by as many steps again, of half the size",
    "D14": "attacks that haven't converged",
    "D15": "successes lost on the way",
    "D16": "broken by four more random starts",
    "D17": "pictures made for the other model do more than its own",
    "D18": "an attack helps the model",
    "D19": "kinds of attack not seen in training",
    "D20": "catastrophic overfitting: fooled by PGD though not by FGSM",
    "D21": "robust overfitting: best epoch minus last",
    "D22": "broken by another loss or another scale of logits",
    "D23": "pictures that a saved PNG changes",
    "D24": "broken only in full precision",
    "D25": "gap of confidence and accuracy under attack (ECE)",
    "D26": "share of the commonest answer under attack",
    "D27": "robust accuracy minus that of the commonest class",
}


@dataclass(frozen=True)
class CheckResult:
    """One verdict. value and threshold are in the same unit (shares in [0, 1]); n: pictures it was computed on."""

    id: str
    verdict: str
    value: float | None
    threshold: str
    n: int

    def record(self) -> dict[str, Any]:
        """As metrics/diagnostics.json keeps it; a value that isn't there is left out."""
        return {k: v for k, v in asdict(self).items() if k != "id" and v is not None} | {"name": NAMES[self.id]}


def judge(
    id: str, value: float, n: int, *, warn: float | None = None, fail: float | None = None, images: int | None = None
) -> CheckResult:
    """Above ``fail`` FAIL, above ``warn`` WARN. A share counts only with more than one image behind it where ``images`` (how
    many) is given; without images there is nothing to say."""
    limits = [f"> {limit:g} {verdict}" for limit, verdict in ((warn, WARN), (fail, FAIL)) if limit is not None]
    threshold = ", ".join(limits) + (" and more than one picture" if images is not None else "")
    if n == 0 or not math.isfinite(value):
        return CheckResult(id, UNKNOWN, None, threshold, n)
    enough = images is None or images > 1
    if enough and fail is not None and value > fail:
        verdict = FAIL
    else:
        verdict = WARN if enough and warn is not None and value > warn else PASS
    return CheckResult(id, verdict, float(value), threshold, n)
