"""On a CUDA GPU: the same results twice, and those of the CPU where arithmetic is exact enough to compare."""

import numpy as np
import pandas as pd
import pytest
import torch

from stages.attacks.apgd import apgd_ensemble
from stages.attacks.suite import check_within_budget, per_image_noise
from stages.core.devices import make_fabric
from stages.core.params import ThreatModel
from stages.core.params_file import load_params
from stages.models import classifier
from stages.models.batches import DatasetSplit
from stages.models.weights import create_model
from stages.training import methods
from stages.training.epoch import Training, train_epoch
from stages.training.optimizer import Learner
from tests.helpers.datasets import attack_predictions, toy_dataset
from tests.helpers.repository import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PARAMS, SIZE = load_params(ROOT / "params.yaml"), 32
EPS = 8 / 255


def fabric_of(**changes):
    return make_fabric(PARAMS.runtime.model_copy(update={"device": "cuda"} | changes))


def make_model():
    return create_model("resnet18", ("a", "b", "c"), SIZE, "none", "none", 0)


def trained_weights() -> dict[str, torch.Tensor]:
    """After an epoch of the default adversarial training."""
    p, model = PARAMS.train_adv.model_copy(update={"batch_size": 16}), make_model()
    images = DatasetSplit.from_dataset(toy_dataset(size=SIZE), "train")
    method = methods.make_training_method(p, norm="linf", eps=EPS)
    training = Training(model, images, method, p, seed=0)
    learner = Learner(fabric_of(), model, p, steps=10)
    train_epoch(training, learner, epoch=0)
    return {name: value.cpu() for name, value in learner.model.state_dict().items()}


def test_gpu_is_the_device_that_auto_takes():
    assert fabric_of(device="auto").device.type == "cuda"


def test_training_twice_gives_the_same_weights():
    first, second = trained_weights(), trained_weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_twice_give_the_same_predictions_at_any_batch_size(norm):
    fabric, dataset = fabric_of(), toy_dataset(size=SIZE)
    eps = EPS if norm == "linf" else 1.0
    model = make_model().eval().to(fabric.device)
    fused = classifier.fuse_batchnorm(model)
    threat = ThreatModel(norm=norm, eps=eps, eps_grid=(eps,))

    def predictions(batch_size: int) -> pd.DataFrame:
        p = PARAMS.attack_eval.model_copy(update={"batch_size": batch_size})
        return attack_predictions(fabric, model, dataset, threat, p, fused_model=fused)

    pd.testing.assert_frame_equal(predictions(24), predictions(24), check_exact=True)
    assert (predictions(7)["prediction"] == predictions(24)["prediction"]).mean() > 0.95


def test_float32_attack_agrees_with_the_cpu():
    dataset, correct = toy_dataset(size=SIZE), {}
    for device in ("cpu", "cuda"):
        fabric = fabric_of(device=device, precision="fp32")
        model = classifier.fuse_batchnorm(make_model().eval()).to(fabric.device)
        split = DatasetSplit.from_dataset(dataset, "test")
        x, y = split.load(np.arange(len(split)), fabric.device)
        noise = per_image_noise(0, split.rows, x.shape[1:], x)
        x_adv = apgd_ensemble(model, x, y, EPS, noise, steps=10, targets=3, norm="linf")
        check_within_budget(x, x_adv, EPS, norm="linf")
        correct[device] = (model(x_adv).argmax(1) == y).cpu()
    assert (correct["cpu"] != correct["cuda"]).sum() <= 1
