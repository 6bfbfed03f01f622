"""The card of a model: read from the results of one pipeline run only."""

import pytest

from stages.core.errors import InputError
from stages.serving.card import ModelCard, read_card
from tests.helpers.serving_requests import CARD


def test_card_survives_json_round_trip():
    assert ModelCard.from_json(CARD.to_json()) == CARD


@pytest.mark.usefixtures("finished_pipeline")
def test_card_of_finished_pipeline():
    card = read_card("adv")
    assert (card.crop, card.eps, card.images, card.confidence, card.synthetic) == (
        "none",
        0.01,
        7,
        0.9,
        False,
    )
    assert "L2, ε = 0.01" in card.disclaimer()
    assert "synthetic" not in card.disclaimer()


@pytest.mark.usefixtures("finished_pipeline")
def test_card_of_missing_model_is_refused():
    with pytest.raises(InputError, match="whole `dvc repro`"):
        read_card("clean")


@pytest.mark.parametrize(
    "file", ["data/models/adv.safetensors", "metrics/evaluate.json", "metrics/data.json"]
)
def test_card_is_refused_if_file_differs_from_dvc_lock(finished_pipeline, file):
    with (finished_pipeline / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(InputError, match=f"{file}: expected the one that dvc.lock records"):
        read_card("adv")
