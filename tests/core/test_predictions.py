"""How rows of predictions are selected and combined, and which tables of them are impossible."""

import itertools

import numpy as np
import pandas as pd
import pytest

from stages.core import predictions
from stages.core.files import FileFormatError
from stages.core.predictions import CLEAN, is_correct, select, validate, within, worst_case

CLASSES = ("1", "NA", "3")
EPS = {CLEAN: (0.0,), "fgsm": (8 / 255,), "pgd": (2 / 255, 8 / 255)}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Twelve images under every attack and ε of EPS, with random predictions."""
    rng, cases = np.random.default_rng(0), []
    for number, (attack, values) in itertools.product(range(12), EPS.items()):
        for eps in values:
            logits = rng.normal(size=3)
            probability, k = np.exp(logits) / np.exp(logits).sum(), number % 3
            case = dict.fromkeys(predictions.PREDICTIONS.columns, 0) | {
                "path": f"{CLASSES[k]}/{number:02d}.jpg",
                "group": f"g{number}",
                "label": CLASSES[k],
                "attack": attack,
                "found_by": attack,
                "norm": "linf",
                "eps": eps,
                "prediction": CLASSES[logits.argmax()],
                "margin": logits[k] - np.delete(logits, k).max(),
            }
            names = predictions.probability_columns(CLASSES)
            cases.append(case | dict(zip(names, probability, strict=True)))
    return validate(pd.DataFrame(cases)).sample(frac=1, random_state=0, ignore_index=True)


def test_selection_takes_one_row_per_image_though_tables_round_eps(rows):
    rounded = rows.assign(eps=[float(f"{eps:.6g}") for eps in rows["eps"]])
    for attack, values in EPS.items():
        for eps in values:
            found = select(rounded, attack, eps)
            assert list(found["path"]) == sorted(rows["path"].unique())
            assert set(found["attack"]) == {attack}
            assert attack in predictions.attacks_at(rounded, eps)
    assert predictions.eps_values(rounded) == pytest.approx([2 / 255, 8 / 255], rel=1e-5)
    assert len(within(rounded, 2 / 255)) == 2 * 12


@pytest.mark.parametrize("eps", [0.0, 2 / 255, 8 / 255])
def test_worst_case_is_wrong_if_any_row_is_and_no_row_is_more_harmful(eps, rows):
    allowed = within(rows, eps)
    worst = worst_case(allowed).set_index("path")
    assert sorted(worst.index) == sorted(rows["path"].unique())
    for path, group in allowed.groupby("path"):
        correct = is_correct(group)
        assert (worst.loc[path, "prediction"] == worst.loc[path, "label"]) == correct.all()
        candidates = group if correct.all() else group[~correct]
        assert worst.loc[path, "margin"] == candidates["margin"].min()


def test_equal_logits_that_are_wrong_are_worse_than_a_correct_prediction_of_the_same_margin(rows):
    # Two equal logits: margin 0 either way, and argmax decides whether the prediction is correct.
    first = select(rows, "pgd", 8 / 255).head(1)
    correct = first.assign(attack="bim", prediction=first["label"], margin=0.0)
    wrong = first.assign(attack="pgd", margin=0.0)
    wrong["prediction"] = next(name for name in CLASSES if name != first["label"].item())
    for order in ([correct, wrong], [wrong, correct]):
        assert not is_correct(worst_case(pd.concat(order))).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="margin"), "expected the columns path, group"),
        (lambda t: t.drop(columns=["p_NA", "p_3"]), "expected two or more p_<class>, got 1"),
        (lambda t: t.iloc[:0], "expected at least one row, got none"),
        (lambda t: t.assign(margin=float("nan")), "margin: expected finite numbers"),
        (lambda t: t.assign(prediction="4"), "prediction: expected one of 1, NA, 3, got '4'"),
        (lambda t: t.assign(p_1=0.9), "p_<class>: expected probabilities that add up to 1"),
        (lambda t: t.assign(eps=0.1), "eps: expected 0 for attack none"),
        (lambda t: pd.concat([t, t]), "expected one row per path, attack and eps"),
        (lambda t: t.iloc[1:], ".* at eps .*: expected all 12 images, got 11"),
        (lambda t: t[t["attack"] != CLEAN], "attack: expected rows of attack none, got none"),
        (lambda t: t.assign(group=t.index.astype(str)), "expected one label and one group"),
    ],
)
def test_impossible_table_is_refused(change, message, rows):
    with pytest.raises(FileFormatError, match=f"^somewhere: {message}"):
        validate(change(rows), "somewhere")
