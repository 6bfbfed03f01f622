"""The guard against catastrophic overfitting fires on a collapse, and on nothing else."""

import pytest
import torch

from stages.core.overfitting import alarm, measures, watch
from stages.core.perturbations import fgsm, loss_and_gradient

EPS = 8 / 255


def row(pgd, fgsm=None, eps=EPS):
    return {"eps": eps, "val_robust_accuracy": pgd, "val_fgsm_accuracy": pgd if fgsm is None else fgsm}


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([row(0.5, 0.55)], ""),
        ([row(0.5, 0.66)], "66% withstand FGSM, 50% PGD"),
        ([row(0.5), row(0.31)], ""),
        ([row(0.5), row(0.29)], "29% withstand PGD, 50% in the epoch before"),
        ([row(0.6), row(0.45), row(0.3)], ""),  # a slow decline is robust overfitting
        ([row(0.5, 0.9, EPS / 2)], ""),  # not yet trained for what it is attacked with
        ([row(0.5, eps=EPS / 2), row(0.2)], ""),
        ([row(0.5), row(0.4, 0.9), row(0.5)], ""),  # over again
    ],
)
def test_what_counts_as_a_collapse(history, says):
    said = alarm(history, EPS)
    assert said == (f"catastrophic overfitting: {says}" if says else "")
    columns = watch(history, EPS)
    assert columns["catastrophic_overfitting"] == bool(says)
    best = max(r["val_robust_accuracy"] for r in history)
    assert columns["robust_overfitting"] == pytest.approx(best - history[-1]["val_robust_accuracy"])


def test_measures_of_a_linear_model_are_known(linear):
    x = torch.rand(32, 3, 4, 4) * 0.5 + 0.25
    y = linear(x).argmax(1)
    found = measures(linear, x, y, EPS, torch.rand_like(x) * 2 - 1, "linf")
    assert torch.allclose(found["val_gradient_cosine"], torch.ones(32), atol=1e-5), "the same slope everywhere"
    assert torch.equal(found["val_fgsm_accuracy"], linear(fgsm(linear, x, y, EPS)).argmax(1) == y)


def test_measures_of_a_network_are_what_they_say(small_net, pictures):
    x, y = pictures
    noise = torch.rand_like(x) * 2 - 1
    found = measures(small_net, x, y, EPS, noise, "linf")
    here, there = (loss_and_gradient(small_net, z, y)[2].flatten(1) for z in (x, (x + EPS * noise).clamp(0, 1)))
    assert torch.allclose(found["val_gradient_cosine"], (here * there).sum(1) / here.norm(dim=1) / there.norm(dim=1), atol=1e-5)
    assert torch.equal(found["val_fgsm_accuracy"], small_net(fgsm(small_net, x, y, EPS)).argmax(1) == y)
