"""The gradient steps against closed forms, and that they leave the model unchanged."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stages.attacks.perturbations import fgsm, loss_and_gradient, margin_loss, pgd, project
from stages.attacks.suite import perturbation_norm
from stages.models.inference import frozen_eval_mode

EPS = 8 / 255


def noise_like(x):
    return torch.rand_like(x) * 2 - 1


def tensors_and_modes(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        m.training for m in model.modules()
    ]


ATTACKS = {
    "fgsm": lambda m, x, y, eps=EPS, norm="linf": fgsm(m, x, y, eps, norm=norm),
    "pgd": lambda m, x, y, eps=EPS, norm="linf": pgd(
        m, x, y, eps, noise_like(x), alpha=eps / 4, steps=5, norm=norm
    ),
    "pgd_early_stop": lambda m, x, y, eps=EPS, norm="linf": pgd(
        m, x, y, eps, noise_like(x), alpha=eps / 4, steps=5, norm=norm, early_stop_margin=0
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("training", [True, False])
def test_attack_leaves_model_unchanged(name, training, small_net, images):
    small_net.train(training)
    small_net.body[0].eval()  # a mixture of modes must be restored as a mixture
    small_net.head[2].bias.requires_grad_(False)
    small_net.head[2].weight.grad = torch.ones_like(small_net.head[2].weight)
    tensors, modes = tensors_and_modes(small_net)
    trainable = [p.requires_grad for p in small_net.parameters()]
    ATTACKS[name](small_net, *images)
    tensors_after, modes_after = tensors_and_modes(small_net)
    assert all(torch.equal(tensors[k], tensors_after[k]) for k in tensors)
    assert modes == modes_after
    assert trainable == [p.requires_grad for p in small_net.parameters()]
    assert torch.equal(small_net.head[2].weight.grad, torch.ones_like(small_net.head[2].weight))
    assert all(p.grad is None for p in small_net.body.parameters())


def test_frozen_eval_mode_is_undone_after_exception(small_net):
    small_net.train()
    with pytest.raises(KeyError), frozen_eval_mode(small_net):
        assert not any(p.requires_grad for p in small_net.parameters())
        raise KeyError
    assert small_net.body[1].training
    assert all(p.requires_grad for p in small_net.parameters())


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_stays_within_eps_and_pixel_range(name, norm, eps, small_net, images):
    x, y = images
    x[:8] = (x[:8] > 0.5).float()  # pixels at the ends of the range
    x_adv = ATTACKS[name](small_net, x, y, eps, norm)
    assert perturbation_norm(x, x_adv, norm=norm).max() <= eps + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_zero_eps_gives_the_clean_image(name, small_net, images):
    assert torch.equal(ATTACKS[name](small_net, *images, eps=0.0), images[0])


def test_one_pgd_step_from_the_image_is_fgsm(linear):
    x, y = torch.rand(8, 3, 4, 4) * 0.5 + 0.25, torch.zeros(8, dtype=torch.long)
    x_adv = pgd(linear, x, y, EPS, alpha=EPS, steps=1, norm="linf")
    assert torch.allclose(x_adv, fgsm(linear, x, y, EPS, norm="linf"))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attack_on_linear_model_succeeds_exactly_above_its_distance(attack, linear):
    x = torch.rand(64, 3, 4, 4) * 0.4 + 0.3  # far enough from 0 and 1 for the ball to be whole
    y = linear(x).argmax(1)
    distance = (margin_loss(linear(x), y).abs() / linear.weight.abs().sum()).detach()
    for factor, expected in ((1.01, True), (0.99, False)):
        for i in range(len(x)):
            eps = factor * distance[i].item()
            if eps > 0.29:
                continue
            image, label = x[i : i + 1], y[i : i + 1]
            if attack == "fgsm":
                x_adv = fgsm(linear, image, label, eps, norm="linf")
            else:
                x_adv = pgd(
                    linear,
                    image,
                    label,
                    eps,
                    noise_like(image),
                    alpha=eps / 2,
                    steps=8,
                    norm="linf",
                )
            assert (linear(x_adv).argmax(1) != y[i]).item() is expected


def test_pgd_returns_the_worst_point_visited(small_net, images):
    x, y = images
    visited = []

    def recording_forward(inputs):
        logits = type(small_net).forward(small_net, inputs)
        visited.append(margin_loss(logits, y).detach())
        return logits

    recorder = copy.copy(small_net)
    recorder.forward = recording_forward
    x_adv = pgd(recorder, x, y, EPS, noise_like(x), alpha=EPS, steps=7, norm="linf")
    assert torch.allclose(margin_loss(small_net(x_adv), y), torch.stack(visited).amax(0), atol=1e-5)


def test_early_stop_succeeds_on_the_same_images(small_net, images):
    x, _ = images
    y = small_net(x).argmax(1)
    how = {"alpha": 0.02, "steps": 20, "norm": "linf"}
    noise = noise_like(x)
    full = small_net(pgd(small_net, x, y, 0.1, noise, **how)).argmax(1) != y
    early = small_net(pgd(small_net, x, y, 0.1, noise, **how, early_stop_margin=0.0)).argmax(1) != y
    assert torch.equal(full, early)
    assert full.any()


def test_perturbation_of_an_image_does_not_depend_on_its_batch(small_net, images):
    model, (x, y) = small_net.double(), images
    x = x.double()
    how = {"alpha": EPS / 4, "steps": 5, "norm": "linf"}
    batch = pgd(model, x, y, EPS, torch.zeros_like(x), **how)
    single = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], EPS, **how) for i in range(len(x))])
    assert torch.allclose(batch, single, atol=1e-12)


def test_gradient_agrees_with_finite_differences(small_net, images):
    model, (x, y) = small_net.double(), (images[0].double(), images[1])
    _, _, gradient = loss_and_gradient(model, x, y)
    direction = torch.randn_like(x)
    h = 1e-6
    ahead, behind = (
        F.cross_entropy(model(x + side * h * direction), y, reduction="none") for side in (1, -1)
    )
    assert torch.allclose(
        (ahead - behind) / (2 * h), (gradient * direction).flatten(1).sum(1), rtol=1e-4, atol=1e-7
    )


def test_linf_projection_is_the_nearest_allowed_point():
    x = torch.tensor([0.0, 0.5, 1.0])
    projected = project(x, torch.tensor([-1.0, 0.9, 0.99]), 0.1, norm="linf")
    assert torch.allclose(projected, torch.tensor([0.0, 0.6, 0.99]))


def test_l2_projection_scales_back_to_the_ball():
    x = torch.full((2, 3, 2, 2), 0.5)
    x_adv = x + torch.tensor([0.2, 0.01]).view(
        2, 1, 1, 1
    )  # norms 0.2 and 0.01 times the root of 12
    projected = project(x, x_adv, 0.1, norm="l2")
    assert torch.allclose(
        perturbation_norm(x, projected, norm="l2"), torch.tensor([0.1, 0.01 * 12**0.5])
    )


def test_margin_loss_is_positive_exactly_when_misclassified():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert margin_loss(logits, torch.tensor([0, 1])).tolist() == [-1.0, 2.0]
