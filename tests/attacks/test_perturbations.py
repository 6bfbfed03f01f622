"""The gradient steps against closed forms, and the promise that the model is left as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stages.attacks.perturbations import fgsm, loss_and_gradient, margin_loss, pgd, project
from stages.models.inference import frozen_eval_mode

EPS = 8 / 255


def noise_like(x):
    return torch.rand_like(x) * 2 - 1


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]


ALL = {
    "fgsm": lambda m, x, y: fgsm(m, x, y, EPS),
    "pgd": lambda m, x, y: pgd(m, x, y, EPS, noise_like(x), alpha=EPS / 4, steps=5),
    "pgd_stop": lambda m, x, y: pgd(m, x, y, EPS, noise_like(x), alpha=EPS / 4, steps=5, early_stop_margin=0),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(name, training, small_net, pictures):
    small_net.train(training)
    small_net.body[0].eval()  # a mixture of modes must come back as a mixture
    small_net.head[2].bias.requires_grad_(False)
    small_net.head[2].weight.grad = torch.ones_like(small_net.head[2].weight)
    before, modes = state_of(small_net)
    wanted = [p.requires_grad for p in small_net.parameters()]
    ALL[name](small_net, *pictures)
    after, modes_after = state_of(small_net)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert modes == modes_after
    assert wanted == [p.requires_grad for p in small_net.parameters()]
    assert torch.equal(small_net.head[2].weight.grad, torch.ones_like(small_net.head[2].weight))
    assert all(p.grad is None for p in small_net.body.parameters())


def test_model_is_restored_after_an_exception(small_net):
    small_net.train()
    with pytest.raises(KeyError), frozen_eval_mode(small_net):
        assert not any(p.requires_grad for p in small_net.parameters())
        raise KeyError
    assert small_net.body[1].training
    assert all(p.requires_grad for p in small_net.parameters())


@pytest.mark.parametrize("name", ALL)
def test_budget_and_range(name, small_net, pictures):
    x, y = pictures
    x[:8] = (x[:8] > 0.5).float()  # pictures at the edge of the range
    moved = (ALL[name](small_net, x, y) - x).abs().max()
    assert moved <= EPS + 1e-6
    assert 0 <= ALL[name](small_net, x, y).min() <= ALL[name](small_net, x, y).max() <= 1


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_eps_zero_is_the_identity(name, small_net, pictures):
    x, y = pictures
    x_adv = fgsm(small_net, x, y, 0.0) if name == "fgsm" else pgd(small_net, x, y, 0.0, noise_like(x), alpha=0.0, steps=3)
    assert torch.equal(x_adv, x)


def test_one_step_from_the_image_is_fgsm(linear):
    x, y = torch.rand(8, 3, 4, 4) * 0.5 + 0.25, torch.zeros(8, dtype=torch.long)
    assert torch.allclose(pgd(linear, x, y, EPS, alpha=EPS, steps=1), fgsm(linear, x, y, EPS))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_linear_model_falls_just_above_its_distance_and_not_below(attack, linear):
    x = torch.rand(64, 3, 4, 4) * 0.4 + 0.3  # far enough from 0 and 1 for the ball to be whole
    y = linear(x).argmax(1)
    distance = (margin_loss(linear(x), y).abs() / linear.weight.abs().sum()).detach()
    for factor, fooled in ((1.01, True), (0.99, False)):
        for i in range(len(x)):
            eps = factor * distance[i].item()
            if eps > 0.29:
                continue
            x_adv = (
                fgsm(linear, x[i : i + 1], y[i : i + 1], eps)
                if attack == "fgsm"
                else pgd(linear, x[i : i + 1], y[i : i + 1], eps, noise_like(x[i : i + 1]), alpha=eps / 2, steps=8)
            )
            assert (linear(x_adv).argmax(1) != y[i]).item() is fooled


def test_an_iterate_that_fooled_is_never_lost(small_net, pictures):
    x, y = pictures
    visited = []

    def spy(inputs):
        logits = type(small_net).forward(small_net, inputs)
        visited.append(margin_loss(logits, y).detach())
        return logits

    spied = copy.copy(small_net)
    spied.forward = spy
    x_adv = pgd(spied, x, y, EPS, noise_like(x), alpha=EPS, steps=7)
    assert torch.allclose(margin_loss(small_net(x_adv), y), torch.stack(visited).amax(0), atol=1e-5)


def test_stopping_early_breaks_the_same_images(small_net, pictures):
    x, y = pictures
    y = small_net(x).argmax(1)
    noise = noise_like(x)
    full = small_net(pgd(small_net, x, y, 0.1, noise, alpha=0.02, steps=20)).argmax(1) != y
    early = small_net(pgd(small_net, x, y, 0.1, noise, alpha=0.02, steps=20, early_stop_margin=0.0)).argmax(1) != y
    assert torch.equal(full, early)
    assert full.any()


def test_the_gradient_of_an_image_does_not_depend_on_its_batch(small_net, pictures):
    model, (x, y) = small_net.double(), pictures
    x = x.double()
    together = pgd(model, x, y, EPS, noise_like(x).mul_(0), alpha=EPS / 4, steps=5)
    alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], EPS, alpha=EPS / 4, steps=5) for i in range(len(x))])
    assert torch.allclose(together, alone, atol=1e-12)


def test_gradient_agrees_with_finite_differences(small_net, pictures):
    model, (x, y) = small_net.double(), (pictures[0].double(), pictures[1])
    _, _, gradient = loss_and_gradient(model, x, y)
    direction = torch.randn_like(x)
    h = 1e-6
    up, down = (F.cross_entropy(model(x + s * h * direction), y, reduction="none") for s in (1, -1))
    assert torch.allclose((up - down) / (2 * h), (gradient * direction).flatten(1).sum(1), rtol=1e-4, atol=1e-7)


def test_projection_is_the_nearest_allowed_point():
    x = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(project(torch.tensor([-1.0, 0.9, 0.99]), x, 0.1), torch.tensor([0.0, 0.6, 0.99]))


def test_lead_is_positive_exactly_for_wrong_answers():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert margin_loss(logits, torch.tensor([0, 1])).tolist() == [-1.0, 2.0]
