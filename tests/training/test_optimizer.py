"""Learning rate, parameter groups, moving average, clipping and AWP against their closed forms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

from stages.models.weights import create_model
from stages.training.optimizer import (
    Learner,
    adversarial_weights,
    make_optimizer,
    warmup_cosine,
)
from tests.helpers.models import tiny_classifier
from tests.helpers.training_runs import with_params


def test_learning_rate_is_linear_warmup_then_cosine():
    factors = [warmup_cosine(step, 100, 0.2) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[20] == pytest.approx(1)
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert warmup_cosine(0, 100, 0.0) == 1


def test_parameter_groups_have_expected_rates_and_weight_decay():
    model = create_model("resnet18", ("a", "b"), 32, "none", "none", 0)
    model.freeze("layer1")
    optimizer = make_optimizer(model, with_params(backbone_lr=0.1))
    names = {id(p): n for n, p in model.backbone.named_parameters()}
    trained = set()
    for group in optimizer.param_groups:
        for name in (names[id(p)] for p in group["params"]):
            trained.add(name)
            assert group["lr"] == pytest.approx(0.02 if name.startswith("fc.") else 0.002)
            norm_or_bias = "bn" in name or "downsample.1" in name or name.endswith("bias")
            assert group["weight_decay"] == (0 if norm_or_bias else 5e-4)
    frozen = ("conv1", "bn1", "layer1")
    assert trained == {name for name in names.values() if not name.startswith(frozen)}


def test_ema_and_schedule_match_closed_form(fabric):
    torch.manual_seed(0)
    p = with_params(ema=0.75, clip_norm=0.0, warmup=0.5)
    learner = Learner(fabric, tiny_classifier(), p, steps=4)
    x, name = torch.rand(8, 3, 16, 16), "backbone.head.2.weight"
    expected = learner.module.state_dict()[name].clone()
    for step in range(3):
        assert learner.lr == pytest.approx(p.lr * warmup_cosine(step, 4, 0.5))
        learner.backward(learner.model(x).square().mean())
        learner.step()
        weight = learner.module.state_dict()[name]
        # The average starts at the weights after the first step.
        expected = weight.clone() if step == 0 else 0.75 * expected + 0.25 * weight
        assert torch.allclose(learner.eval_model.state_dict()[name], expected, atol=1e-7)
    assert not torch.allclose(expected, weight)


def test_clipping_bounds_step_length(fabric):
    p = with_params(clip_norm=1e-3, lr=1.0, weight_decay=0.0, warmup=0.0)
    learner = Learner(fabric, tiny_classifier(), p, steps=10)
    before = parameters_to_vector(learner.module.parameters()).detach()
    learner.backward(learner.model(torch.rand(8, 3, 16, 16)).square().sum())
    learner.step()
    length = (parameters_to_vector(learner.module.parameters()) - before).norm().item()
    assert length == pytest.approx(1.9e-3, rel=1e-3), (
        "Nesterov: 1 + momentum times the clipped gradient"
    )


def test_awp_increases_loss_and_restores_weights_exactly(fabric):
    model, x, y = tiny_classifier().train(), torch.rand(16, 3, 16, 16), torch.arange(16) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss_of(network):
        torch.manual_seed(0)  # the same dropout
        logits = network(x)
        return F.cross_entropy(logits, y), logits

    unperturbed_loss = loss_of(model)[0].item()
    model.load_state_dict(before)
    with adversarial_weights(fabric, model, loss_of, gamma=0.01):
        for name, value in model.state_dict().items():
            change = (value - before[name]).double().norm().item()
            # Norms, biases and BatchNorm's statistics are not perturbed.
            perturbed = name.endswith("weight") and value.ndim > 1
            expected = 0.01 * before[name].norm().item() if perturbed else 0
            assert change == pytest.approx(expected, rel=1e-3), name
        with torch.no_grad():
            assert loss_of(copy.deepcopy(model))[0].item() > unperturbed_loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with pytest.raises(KeyError), adversarial_weights(fabric, model, loss_of, gamma=0.01):
        raise KeyError
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
