"""How the models behave under attack."""

from stages.core.predictions import is_correct
from stages.report.checks.check import Measured, check
from stages.report.results import ModelResults, Results
from stages.report.sections.calibration import expected_calibration_error


@check(
    "D25",
    "Expected calibration error under attack",
    reason="Are confidences a warning of an attack?",
    remedy="A property of the model: don't rely on its confidence.",
)
def calibration_under_attack(results: Results, model: ModelResults) -> Measured:
    """In the worst case."""
    worst = results.worst(model)
    return Measured(expected_calibration_error(worst), len(worst))


@check(
    "D26",
    "Fraction of the most frequent prediction under attack",
    reason="A model that answers with one class under attack has collapsed.",
    remedy="Class balance and training method: look at the confusion matrices.",
    warn=0.9,
)
def prediction_collapse(results: Results, model: ModelResults) -> Measured:
    """In the worst case."""
    shares = results.worst(model)["prediction"].value_counts(normalize=True)
    return Measured(shares.iloc[0], results.n)


@check(
    "D27",
    "Robust accuracy minus majority-class accuracy",
    reason="Always answering with the most frequent class is correct under every attack as often. "
    "A model that never saw an attack promises nothing: for it, this is a finding.",
    remedy="The model is not robust in any useful sense: smaller ε, other training, more images.",
    fail=0,
    must_exceed=True,
    info=("clean",),
)
def above_majority(results: Results, model: ModelResults) -> Measured:
    """In the worst case."""
    robust = is_correct(results.worst(model))
    return Measured(robust.mean() - results.majority_rate, len(robust))


CHECKS = (calibration_under_attack, prediction_collapse, above_majority)
