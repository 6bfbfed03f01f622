"""Schedules and averages in closed form; which weights decay, and how fast each part learns."""

import dataclasses

import pytest
import torch

from stages.models import initialization
from stages.training.optimization import Learner, lr_factor, make_optimizer
from tests.conftest import tiny_classifier
from tests.helpers.training_runs import P


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    factors = [lr_factor(step, 100, 0.2) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[20] == pytest.approx(1)
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert lr_factor(0, 100, 0.0) == 1


def test_norms_and_biases_do_not_decay_and_the_backbone_has_its_own_rate():
    model = initialization.create_model("resnet18", ("a", "b"), 32, "none", "none", 0)
    model.freeze("layer1")
    optimizer = make_optimizer(model, dataclasses.replace(P, backbone_lr=0.1))
    names = {id(p): n for n, p in model.backbone.named_parameters()}
    members = [(names[id(p)], group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert {n for n, _, _ in members} == {n for n in names.values() if not n.startswith(("conv1", "bn1", "layer1"))}
    for name, lr, decay in members:
        assert lr == pytest.approx(0.02 if name.startswith("fc.") else 0.002)
        assert decay == (0 if "bn" in name or "downsample.1" in name or name.endswith("bias") else 5e-4)


def test_the_average_is_the_exponential_one_and_the_schedule_moves_with_it(fabric):
    torch.manual_seed(0)
    p = dataclasses.replace(P, ema=0.75, clip_norm=0.0, warmup=0.5)
    learner = Learner(fabric, tiny_classifier(), p, steps=4)
    x, name = torch.rand(8, 3, 16, 16), "backbone.head.2.weight"
    wanted = learner.inner.state_dict()[name].clone()
    for step in range(3):
        assert learner.lr == pytest.approx(p.lr * lr_factor(step, 4, 0.5))
        learner.backward(learner.model(x).square().mean())
        learner.step()
        now = learner.inner.state_dict()[name]
        wanted = now.clone() if step == 0 else 0.75 * wanted + 0.25 * now  # the first average is the first weights
        assert torch.allclose(learner.judged.state_dict()[name], wanted, atol=1e-7)
    assert not torch.allclose(wanted, now)


def test_clipping_bounds_the_step(fabric):
    p = dataclasses.replace(P, clip_norm=1e-3, lr=1.0, weight_decay=0.0, warmup=0.0)
    learner = Learner(fabric, tiny_classifier(), p, steps=10)
    before = [weight.detach().clone() for weight in learner.inner.parameters()]
    learner.backward(learner.model(torch.rand(8, 3, 16, 16)).square().sum())
    learner.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(learner.inner.parameters(), before, strict=True)]).norm().item()
    assert moved == pytest.approx(1.9e-3, rel=1e-3), "Nesterov: 1 + momentum times the clipped gradient"
