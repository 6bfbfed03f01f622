"""Predictions of a saved model on image files: the pixels of training, and no dependence on the batch."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from stages.core.dataset import load_dataset
from stages.core.paths import weights_path
from stages.photographs.decoding import decode_image
from stages.serving.card import read_card
from stages.serving.predictor import BATCH, ImagePredictor
from tests.helpers.serving_requests import CARD, SIZE, image_file


@pytest.mark.parametrize("crop", ["none", "square", "cervix"])
def test_preprocessing_follows_card(weights, crop):
    predictor = ImagePredictor(weights, dataclasses.replace(CARD, crop=crop))
    assert np.array_equal(
        predictor.preprocess(image_file()), decode_image(image_file(), SIZE, crop).pixels
    )


def test_prediction_is_independent_of_batch(weights):
    predictor = ImagePredictor(weights, CARD)
    pixels = [predictor.preprocess(image_file(seed=i % 5)) for i in range(BATCH + 3)]
    together = predictor.predict_proba(pixels)
    assert together.shape == (BATCH + 3, 3)
    assert np.allclose(together.sum(1), 1, atol=1e-6)
    assert np.allclose(together[BATCH:], predictor.predict_proba(pixels[BATCH:]), atol=1e-6)
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
    predictor = ImagePredictor(weights_path("adv"), read_card("adv"))
    source = pipeline_project / "data/few"
    for path, stored in zip(dataset.manifest["path"], dataset.images, strict=True):
        assert np.array_equal(predictor.preprocess((source / path).read_bytes()), stored), path
    rows = dataset.split_rows("test")
    found = predictor.predict_proba(list(dataset.images[rows]))
    columns = [f"p_{name}" for name in dataset.classes]
    expected = predictions.loc[dataset.manifest["path"].iloc[rows], columns].to_numpy()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)
