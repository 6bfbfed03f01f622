"""Learning rate schedule, parameter groups, weight average and gradient clipping against their closed forms."""

import pytest
import torch

from stages.models.initialization import create_model
from stages.training.optimization import Learner, make_optimizer, warmup_cosine
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
    members = [
        (names[id(p)], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert {n for n, _, _ in members} == {
        n for n in names.values() if not n.startswith(("conv1", "bn1", "layer1"))
    }
    for name, lr, decay in members:
        assert lr == pytest.approx(0.02 if name.startswith("fc.") else 0.002)
        assert decay == (
            0 if "bn" in name or "downsample.1" in name or name.endswith("bias") else 5e-4
        )


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
        expected = (
            weight.clone() if step == 0 else 0.75 * expected + 0.25 * weight
        )  # starts at the first weights
        assert torch.allclose(learner.eval_model.state_dict()[name], expected, atol=1e-7)
    assert not torch.allclose(expected, weight)


def test_clipping_bounds_step_length(fabric):
    p = with_params(clip_norm=1e-3, lr=1.0, weight_decay=0.0, warmup=0.0)
    learner = Learner(fabric, tiny_classifier(), p, steps=10)
    before = [weight.detach().clone() for weight in learner.module.parameters()]
    learner.backward(learner.model(torch.rand(8, 3, 16, 16)).square().sum())
    learner.step()
    step = (
        torch.cat(
            [(a - b).flatten() for a, b in zip(learner.module.parameters(), before, strict=True)]
        )
        .norm()
        .item()
    )
    assert step == pytest.approx(1.9e-3, rel=1e-3), (
        "Nesterov: 1 + momentum times the clipped gradient"
    )
