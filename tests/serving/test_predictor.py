"""Predictions of a saved model: on the pixels of training, independent of the batch."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from stages.core.dataset import load_dataset
from stages.core.paths import weights_path
from stages.photographs.decoding import decode_image
from stages.serving.evaluated_model import read_evaluated_model
from stages.serving.predictor import ImagePredictor
from tests.helpers.evaluated_models import EVALUATED, SIZE
from tests.helpers.serving_requests import image_file


@pytest.mark.parametrize("crop", ["none", "square", "cervix"])
def test_preprocessing_is_that_of_training(weights, crop):
    predictor = ImagePredictor(weights, dataclasses.replace(EVALUATED, crop=crop))
    assert np.array_equal(
        predictor.preprocess(image_file()), decode_image(image_file(), SIZE, crop).pixels
    )


def test_prediction_is_independent_of_batch(weights):
    predictor = ImagePredictor(weights, EVALUATED)
    pixels = [predictor.preprocess(image_file(seed)) for seed in range(5)]
    together = predictor.predict_proba(pixels)
    assert together.shape == (5, 3)
    assert np.allclose(together.sum(1), 1, atol=1e-6)
    assert np.allclose(together[3:], predictor.predict_proba(pixels[3:]), atol=1e-6)
    assert predictor.predict_proba([]).shape == (0, 3)


@pytest.mark.slow
def test_predictor_matches_processed_dataset_and_attack_eval(pipeline_project, monkeypatch):
    monkeypatch.chdir(pipeline_project)
    dataset = load_dataset("data/processed")
    predictions = (
        pd.read_csv("data/predictions/adv/predictions.csv")
        .query("attack == 'none'")
        .set_index("path")
    )
    predictor = ImagePredictor(weights_path("adv"), read_evaluated_model("adv"))
    source = pipeline_project / "data/few"
    for path, stored in zip(dataset.manifest["path"], dataset.images, strict=True):
        assert np.array_equal(predictor.preprocess((source / path).read_bytes()), stored), path
    rows = dataset.split_rows("test")
    found = predictor.predict_proba(list(dataset.images[rows]))
    columns = [f"p_{name}" for name in dataset.classes]
    expected = predictions.loc[dataset.manifest["path"].iloc[rows], columns].to_numpy()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
