"""One style for numbers, eps, attacks and class names."""

from typing import get_args

import pytest
from stages.attacks.corruptions import CORRUPTIONS
from stages.attacks.suite import attack_suite
from stages.evaluation.formatting import (
    ATTACK_LABELS,
    CORRUPTION_LABELS,
    NBSP,
    NOT_AVAILABLE,
    attack_label,
    capitalized,
    class_label,
    listed,
    metric,
    p_value,
    percent,
    proportion,
)
from stages.evaluation.summary import METHOD_NAMES

from stages.core.params import TrainAdvParams
from stages.core.params_file import load_params
from tests.helpers.repository import ROOT

VALUES = {"accuracy": 0.8731, "accuracy_low": 0.8042, "accuracy_high": 0.9325, "loss": 0.35394}


def test_metric_has_its_interval_with_a_no_break_space():
    assert metric(VALUES, "accuracy") == f"87.3% [80.4,{NBSP}93.2]"
    assert metric(VALUES, "loss", unit="") == "0.354"
    assert metric(VALUES, "auc") == NOT_AVAILABLE
    assert (
        proportion({"recall": 0.5, "low": 0.25, "high": 0.75}, "recall")
        == f"50.0% [25.0,{NBSP}75.0]"
    )


def test_differences_are_signed_percentage_points():
    change = {"accuracy": -0.049, "accuracy_low": -0.124, "accuracy_high": 0.028}
    assert metric(change, "accuracy", signed=True) == f"-4.9{NBSP}pp [-12.4,{NBSP}+2.8]"
    assert percent(0.396, signed=True) == f"+39.6{NBSP}pp"


def test_missing_value_is_not_available():
    assert percent(None) == NOT_AVAILABLE
    assert percent(0.0) == "0.0%"


@pytest.mark.parametrize(
    ("p", "text"), [(3.2e-28, "p < 0.001"), (0.0807, "p = 0.081"), (1.0, "p = 1.000")]
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_attacks_are_named_with_their_steps():
    assert attack_label("pgd", 10) == "PGD-10"
    assert attack_label("fgsm", 1) == "FGSM"
    assert attack_label("pgd") == "PGD"
    assert attack_label("aa-k3", 15) == "Ensemble (aa-k3)"


def test_every_attack_corruption_and_method_has_a_label():
    assert (
        attack_suite(load_params(ROOT / "params.yaml").attack_eval, norm="linf").keys()
        <= ATTACK_LABELS.keys()
    )
    assert CORRUPTIONS.keys() <= CORRUPTION_LABELS.keys()
    assert set(get_args(TrainAdvParams.model_fields["method"].annotation)) == METHOD_NAMES.keys()


def test_names_in_sentences():
    assert class_label("Type_1") == "Type 1"
    assert [listed(list("abc"[:k])) for k in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_capitalized_changes_the_first_letter_only():
    assert [capitalized(text) for text in ("low contrast", "JPEG", "")] == [
        "Low contrast",
        "JPEG",
        "",
    ]
