"""The tables survive the round trip through a file, and an invalid one is refused with a message that names it."""

import numpy as np
import pandas as pd
import pytest

from stages.core.files import FileFormatError
from stages.core.predictions import (
    COLUMNS,
    EXAMPLE_COLUMNS,
    classes_of,
    probabilities,
    read_examples,
    read_predictions,
    validate_predictions,
    write_examples,
    write_predictions,
)


def small_table(classes=("1", "NA", "3")) -> pd.DataFrame:
    rows = []
    for path, label in (("a/1.jpg", classes[0]), ('b/"ä, 2".jpg', classes[1])):
        for attack, eps, steps in (("none", 0.0, 0), ("fgsm", 8 / 255, 1)):
            numbers = {
                "eps": eps,
                "seed": 0,
                "steps": steps,
                "confidence": 0.6,
                "margin": -1.23456789,
                "linf": eps,
                "l2": eps,
                "ssim": 1,
            }
            text = {
                "path": path,
                "group": path,
                "label": label,
                "attack": attack,
                "found_by": attack,
                "prediction": classes[2],
            }
            rows.append(
                text
                | numbers
                | dict(zip([f"p_{c}" for c in classes], (0.1, 0.3, 0.6), strict=True))
            )
    return pd.DataFrame(rows)[[*COLUMNS, *(f"p_{c}" for c in classes)]]


def test_predictions_round_trip_keeps_text_and_six_digits(tmp_path):
    table = small_table()
    write_predictions(table, tmp_path)
    read = read_predictions(tmp_path)
    assert classes_of(read) == ("1", "NA", "3")
    for column in ("path", "group", "label", "attack", "prediction"):
        assert list(read[column]) == list(table[column])
    assert np.allclose(read["margin"], table["margin"], rtol=1e-5)
    assert np.allclose(probabilities(read), [[0.1, 0.3, 0.6]] * 4)
    before = (tmp_path / "predictions.csv").read_bytes()
    write_predictions(read, tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="margin"), "expected the columns path, group"),
        (lambda t: t.iloc[:0], "expected at least one row, got none"),
        (lambda t: t.assign(margin=float("nan")), "margin: expected finite numbers"),
        (lambda t: t.assign(prediction="4"), "prediction: expected one of 1, NA, 3, got '4'"),
        (lambda t: t.assign(p_1=0.9), "expected probabilities that add up to 1"),
        (lambda t: t.assign(eps=0.1), "eps: expected 0 for attack none"),
        (lambda t: pd.concat([t, t]), "expected one row per path, attack and eps"),
        (lambda t: t.iloc[:3], "fgsm at eps 0.0313725: expected all 2 images, got 1"),
        (lambda t: t[t["attack"] != "none"], "expected the rows of attack none"),
        (lambda t: t.assign(group=list("abcd")), "expected one label and one group per path"),
    ],
)
def test_invalid_predictions_are_refused(change, message):
    with pytest.raises(FileFormatError, match=message):
        validate_predictions(change(small_table()))


def test_missing_or_empty_predictions_file_is_named(tmp_path):
    with pytest.raises(
        FileFormatError,
        match=r"predictions\.csv: expected a file .* got none: run that stage first",
    ):
        read_predictions(tmp_path)
    (tmp_path / "predictions.csv").write_text("")
    with pytest.raises(FileFormatError, match=r"predictions\.csv: expected a table"):
        read_predictions(tmp_path)


def test_examples_round_trip_even_without_rows(tmp_path):
    empty = pd.DataFrame(columns=list(EXAMPLE_COLUMNS))
    write_examples(empty, tmp_path)
    assert read_examples(tmp_path).empty
    row = ("a.jpg", "pgd", 8 / 255, "1", "1", 0.9, "NA", 0.8, "0_original.png", "0_adversarial.png")
    write_examples(pd.DataFrame([row], columns=list(EXAMPLE_COLUMNS)), tmp_path)
    assert read_examples(tmp_path).loc[0, "adversarial_prediction"] == "NA"


def test_examples_without_a_column_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="expected the columns path, attack"):
        write_examples(
            pd.DataFrame(columns=[name for name in EXAMPLE_COLUMNS if name != "eps"]), tmp_path
        )
