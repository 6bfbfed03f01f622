"""The results of the diagnostics D1 to D28: verdict, value, threshold. Needs neither a model nor a table."""

import math
from dataclasses import asdict, dataclass
from typing import Any

PASS, WARN, FAIL, INFO, INCONCLUSIVE = "PASS", "WARN", "FAIL", "INFO", "INCONCLUSIVE"
# Each title names the measured quantity; for all but D19 and D27 lower is better.
TITLES = {
    "D1": "Perturbation norm above ε, in float32 or 8 bits",
    "D2": "Model outputs look like probabilities",
    "D3": "Logit change between batch sizes or repeats",
    "D4": "Tensors or modes that an attack changed in the model",
    "D5": "Images with zero input gradient",
    "D6": "Relative error of the gradient vs. finite differences",
    "D7": "Relative loss change under random noise",
    "D8": "Accuracy increase from a weaker to a stronger attack",
    "D9": "Images misclassified under black-box attacks only",
    "D10": "Images misclassified under random noise but not under PGD",
    "D11": "Accuracy increase with ε",
    "D12": "Accuracy at ε = 64/255",
    "D13": "Extra successes of as many further PGD steps of half the size",
    "D14": "Attacks that have not converged",
    "D15": "Adversarial iterates that were not returned",
    "D16": "Extra successes of two more PGD restarts",
    "D17": "Accuracy under PGD minus accuracy under the transfer attack",
    "D18": "Images whose margin loss PGD does not increase",
    "D19": "Attack types unlike the training attack",
    "D20": "FGSM minus PGD accuracy in validation (catastrophic overfitting)",
    "D21": "Best minus last robust accuracy in validation (robust overfitting)",
    "D22": "Extra successes of other losses and logit scales",
    "D23": "Attack successes changed by 8-bit quantization",
    "D24": "Extra successes of PGD in float32",
    "D25": "Expected calibration error under attack",
    "D26": "Fraction of the most frequent prediction under attack",
    "D27": "Robust accuracy minus majority-class accuracy",
    "D28": "Success rates: minimum perturbation vs. all attacks",
}
# Checks whose value is a fraction of images: a rate of up to 3 / n may show in none of n images (the rule of three, 95 %), so
# that fewer than 3 / limit images can't PASS.
RATES = ("D5", "D8", "D9", "D10", "D12", "D13", "D14", "D16", "D18", "D22", "D23", "D24")
GROUPS = {  # title of a part of the report's table -> its checks
    "Model and implementation": ("D1", "D2", "D3", "D4", "D6", "D23", "D24"),
    "Gradient masking": ("D5", "D7", "D9", "D10", "D17", "D22"),
    "Attack strength": ("D8", "D11", "D12", "D13", "D14", "D15", "D16", "D18", "D19", "D28"),
    "Training": ("D20", "D21"),
    "Model behavior": ("D25", "D26", "D27"),
}


@dataclass(frozen=True)
class CheckResult:
    """One verdict; value and threshold are in the same unit (fractions in [0, 1]), n is what it was computed on."""

    id: str
    verdict: str
    value: float | None
    threshold: str
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As metrics/diagnostics.json keeps it; a missing value is left out."""
        return {k: v for k, v in asdict(self).items() if k != "id" and v is not None} | {
            "name": TITLES[self.id]
        }


def grade(
    check: str, value: float, n: int, *, warn: float | None = None, fail: float | None = None
) -> CheckResult:
    """FAIL above ``fail``, WARN above ``warn``, else PASS; INCONCLUSIVE without data, and for a rate of too few images."""
    limits = {
        verdict: limit for verdict, limit in ((WARN, warn), (FAIL, fail)) if limit is not None
    }
    threshold = ", ".join(f"> {limit:g} {verdict}" for verdict, limit in limits.items())
    needed = 0
    if check in RATES:
        needed = math.ceil(
            3 / min((limit for limit in limits.values() if limit > 0), default=math.inf)
        )
        threshold += f"; n ≥ {needed}"
    if n == 0 or not math.isfinite(value):
        return CheckResult(check, INCONCLUSIVE, None, threshold, n)
    if fail is not None and value > fail:
        verdict = FAIL
    elif warn is not None and value > warn:
        verdict = WARN
    elif n < needed:
        verdict = INCONCLUSIVE
    else:
        verdict = PASS
    return CheckResult(check, verdict, float(value), threshold, n)
