"""The guard against catastrophic overfitting fires on a collapse, and on nothing else."""

import dataclasses
from functools import partial

import pytest
import torch

from stages.attacks.perturbations import fgsm, loss_and_gradient
from stages.training import methods
from stages.training.overfitting import alarm, measures, watch
from tests.conftest import toy_store
from tests.helpers.training_runs import STILL, P, train

EPS = 8 / 255


def row(pgd, fgsm=None, eps=EPS):
    return {"eps": eps, "val_robust_accuracy": pgd, "val_fgsm_accuracy": pgd if fgsm is None else fgsm}


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([row(0.5), row(0.5, 0.64)], ""),
        ([row(0.5), row(0.5, 0.66)], "66% withstand FGSM, 50% PGD"),
        ([row(0.5), row(0.51, 0.9)], ""),  # still learning to resist
        ([row(0.5, 0.9)], ""),
        ([row(0.5), row(0.31)], ""),
        ([row(0.5), row(0.29)], "29% withstand PGD, 50% in the epoch before"),
        ([row(0.6), row(0.45), row(0.3)], ""),  # a slow decline is robust overfitting
        ([row(0.5, eps=EPS / 2), row(0.4, 0.9, EPS)], ""),  # not yet trained for what it is attacked with
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


def test_a_collapse_of_fgsm_training_stops_it_and_keeps_the_best(fabric, tmp_path, capsys):
    eps = 48 / 255  # so large that one step is a poor account of the ball: FGSM training collapses here
    p = dataclasses.replace(
        P,
        epochs=20,
        lr=0.1,
        augment=STILL,
        method="fgsm",
        batch_size=32,
        val_images=96,
        val_steps=10,
        eps_ramp=0.0,
        clip_norm=0.0,
    )
    guard = {"measures": measures, "watch": partial(watch, eps=eps), "alarm": partial(alarm, eps=eps)}
    guard |= {"eps": eps, "score": lambda row: (row["val_robust_accuracy"], -row["val_robust_loss"])}
    result = train(fabric, tmp_path / "c", p, methods.of(p, "linf", eps), store=toy_store(384, 16), **guard)
    last = result.history[-1]
    assert len(result.history) < p.epochs
    assert [row["catastrophic_overfitting"] for row in result.history] == [0.0] * (len(result.history) - 1) + [1.0]
    assert last["val_fgsm_accuracy"] > last["val_robust_accuracy"] + 0.15
    best = max(row["val_robust_accuracy"] for row in result.history)
    assert result.history[result.epoch - 1]["val_robust_accuracy"] == best
    assert last["robust_overfitting"] == pytest.approx(best - last["val_robust_accuracy"])
    told = capsys.readouterr().out
    assert f"stopped after epoch {len(result.history)} of 20, keeping epoch {result.epoch}: catastrophic overfitting: " in told
    again = train(fabric, tmp_path / "c", p, methods.of(p, "linf", eps), store=toy_store(384, 16), **guard)
    assert again.history == result.history, "started again it doesn't train on"
