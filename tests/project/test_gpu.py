"""On a CUDA GPU: the same results twice, and those of the CPU where arithmetic is exact enough."""

import pandas as pd
import pytest
import torch

from stages.attacks.apgd import apgd
from stages.attacks.gradient import is_adversarial
from stages.core.devices import make_fabric
from stages.core.norms import NORMS
from stages.models.classifier import Classifier
from stages.training.validation import RobustValidation
from tests.helpers.datasets import toy_dataset
from tests.helpers.measuring import make_context, run_suite
from tests.helpers.params import params
from tests.helpers.training_runs import same_tensors, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SIZE, EPS = 32, {"linf": 8 / 255, "l2": 1.0}


def fabric_of(device="cuda", precision="auto"):
    changes = {"runtime.device": device, "runtime.precision": precision}
    return make_fabric(params(**changes).runtime)


def context_of(fabric, **changes):
    torch.manual_seed(0)
    model = Classifier("resnet18", ("a", "b", "c"), SIZE).eval()
    return make_context(fabric, toy_dataset(size=SIZE), {"clean": model}, **changes)


def test_gpu_is_the_device_that_auto_takes():
    assert fabric_of("auto").device.type == "cuda"


def test_training_and_attacks_of_validation_twice_give_the_same(tmp_path):
    first, second = (
        train(fabric_of(), tmp_path / name, validation=RobustValidation) for name in "ab"
    )
    assert same_tensors(first.state, second.state)
    assert first.history == second.history


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_twice_give_the_same_predictions_at_any_batch_size(norm):
    eps = EPS[norm]
    threat = {"attack.norm": norm, "attack.eps": eps, "attack.eps_grid": [eps]}

    def rows(batch_size: int) -> pd.DataFrame:
        size = {"attack_eval.batch_size": batch_size}
        return run_suite(context_of(fabric_of(), **threat, **size))

    pd.testing.assert_frame_equal(rows(24), rows(24), check_exact=True)
    assert (rows(7)["prediction"] == rows(24)["prediction"]).mean() > 0.95


def test_float32_attack_agrees_with_the_cpu():
    fooled = []
    for device in ("cpu", "cuda"):
        context = context_of(fabric_of(device, "fp32"))
        target, budget = context.target, context.attack.budget
        batch = target.load(target.everything)
        x_adv = apgd.run(target.fused_model, batch.x, batch.y, budget, batch.noise, context.p)
        fooled.append(is_adversarial(target.model, x_adv, batch.y).cpu())
    assert (fooled[0] != fooled[1]).sum() <= 1
