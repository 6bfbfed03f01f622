"""Did adversarial training fail in one of its two known ways?"""

from stages.report.checks.check import Measured, check
from stages.report.results import ModelResults, Results


@check(
    "D20",
    "FGSM minus PGD accuracy in validation (catastrophic overfitting)",
    reason="Trained against one step, a model may become robust to that step alone "
    "(arXiv:2001.03994).",
    remedy="Another method (train_adv.method), or a smaller step (train_adv.alpha_rel).",
    warn=0.15,
)
def catastrophic_overfitting(results: Results, model: ModelResults) -> Measured | None:
    """In the selected epoch; n counts epochs."""
    if model.name != "adv":
        return None
    history = model.history
    gap = history["val_fgsm_accuracy"] - history["val_robust_accuracy"]
    return Measured(gap[history["chosen"] == 1].max(), len(history))


@check(
    "D21",
    "Best minus last robust accuracy in validation (robust overfitting)",
    reason="Robust accuracy may fall while the training loss still does (arXiv:2002.11569).",
    remedy="Fewer epochs; the best epoch is kept.",
    warn=0.02,
)
def robust_overfitting(results: Results, model: ModelResults) -> Measured | None:
    """N counts epochs."""
    if model.name != "adv":
        return None
    robust = model.history["val_robust_accuracy"]
    return Measured(robust.max() - robust.iloc[-1], len(robust))


CHECKS = (catastrophic_overfitting, robust_overfitting)
