"""The lean ensemble: APGD equal to the library's step by step, targets, precision, independence of the batch."""

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack_targeted
from torch import nn

from stages.attacks import apgd, autoattack
from stages.attacks.perturbations import margin_loss
from stages.attacks.suite import check_within_budget
from stages.models.inference import frozen_eval_mode
from tests.attacks.test_autoattack import EPS, toy_problem

STEPS = 40


class Recorder(nn.Module):
    """A model that records what it is asked."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.points = model, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.model(x)


class LibraryAPGD(APGDAttack_targeted):
    """The library's APGD on our loss."""

    target = None

    def ce_loss_targeted(self, logits, y):
        return apgd.target_loss(logits, y, self.target)


@pytest.fixture
def _float64():
    """Rounding would add up over the steps, and decide whether a loss that no longer changes is larger than before."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def library_points(model, x, y, target, start, eps, norm):
    recorder = Recorder(model)
    attack = LibraryAPGD(
        recorder, n_iter=STEPS, norm=autoattack.NORMS[norm], eps=eps, device=x.device
    )
    attack.loss, attack.target = "ce-targeted", target
    attack.init_hyperparam(x)
    attack.attack_single_run(x, y, start)
    return recorder.points


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "cross-entropy"])
def test_every_step_is_the_library_s(loss, norm, monkeypatch):
    # At the first step the library compares the loss with 0 instead of that of the start: a positive loss makes both "larger".
    plain = apgd.target_loss
    monkeypatch.setattr(apgd, "target_loss", lambda *args: plain(*args) + 8)
    model, x, y = toy_problem(4)
    model, x = model.double(), x.double()
    eps = 0.3 * EPS[norm]  # too small for success, after which an image would leave
    target = (y + 1) % 4 if loss == "margin" else torch.full_like(y, apgd.CROSS_ENTROPY)
    start = (
        x + eps * (2 * torch.rand_like(x) - 1) / (1 if norm == "linf" else x[0].numel() ** 0.5)
    ).clamp(0, 1)
    expected = library_points(model, x, y, target, start, eps, norm)
    recorder = Recorder(model)
    with frozen_eval_mode(model):
        apgd.apgd(recorder, x, y, target[None], start, eps, steps=STEPS, step_size=2, norm=norm)
    assert len(recorder.points) == len(expected) == STEPS + 1
    for step, (ours, theirs) in enumerate(zip(recorder.points, expected, strict=True)):
        assert torch.allclose(ours, theirs, atol=1e-6), step
    halved = [(a - b).abs().max() for a, b in zip(expected[1:], expected, strict=False)]
    assert halved[-1] < halved[1] / 4, "step sizes that were never halved test no checkpoint"


def test_target_loss_is_margin_or_cross_entropy_per_run():
    logits, y = torch.tensor([[1.0, 4.0, 2.0]] * 3), torch.tensor([1, 1, 0])
    loss = apgd.target_loss(logits, y, torch.tensor([2, apgd.CROSS_ENTROPY, 1]))
    assert loss.tolist() == pytest.approx([-2.0, F.cross_entropy(logits[:1], y[:1]).item(), 3.0])


class CountRuns(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.batches.append(len(x))
        return self.model(x)


@pytest.mark.parametrize(
    ("classes", "targets", "runs"), [(2, 3, 2), (3, 3, 3), (10, 3, 4), (10, 9, 10)]
)
def test_one_run_per_target_and_one_on_cross_entropy_in_no_larger_batches_than_the_caller_s(
    classes, targets, runs
):
    model, x, y = toy_problem(classes)
    counter = CountRuns(model)
    x_adv = apgd.apgd_ensemble(
        counter, x, y, 1e-6, noise_of(x), steps=4, targets=targets, norm="linf"
    )
    check_within_budget(x, x_adv, 1e-6, norm="linf")
    assert sum(counter.batches) == 5 * runs * len(x)
    assert max(counter.batches) <= max(len(x), 2 * runs)


def noise_of(x, seed=0):
    noise = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1
    return lambda distribution, sample: noise


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_finds_at_least_what_the_full_ensemble_s_gradient_attacks_find(classes, norm):
    eps = EPS[norm] * (4 if classes < 4 else 1.5)
    model, x, y = toy_problem(classes, images=48)
    full = autoattack.ensemble_attacks(classes, steps=50, queries=1, norm=norm, seed=0)
    found = torch.zeros(len(x), dtype=torch.bool)
    for name, attack in full.items():
        if name != "square":
            found |= model(attack(model, x, y, eps, noise_of(x))).argmax(1) != y
    x_adv = apgd.apgd_ensemble(model, x, y, eps, noise_of(x), steps=30, targets=9, norm=norm)
    check_within_budget(x, x_adv, eps, norm=norm)
    ours = model(x_adv).argmax(1) != y
    assert 0 < found.sum() < len(x), "an eps at which all or no attacks succeed tests nothing"
    assert ours.sum() >= found.sum() - 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_does_not_depend_on_the_batch_or_on_other_images(norm):
    model, x, y = toy_problem(3)
    noise = noise_of(x)("uniform", 0)
    x_adv = apgd.apgd_ensemble(model, x, y, EPS[norm], noise_of(x), steps=15, targets=2, norm=norm)
    for i in (0, 5, 11):
        one = slice(i, i + 1)
        single = apgd.apgd_ensemble(
            model,
            x[one],
            y[one],
            EPS[norm],
            lambda d, s, one=one: noise[one],
            steps=15,
            targets=2,
            norm=norm,
        )
        assert torch.allclose(x_adv[one], single, atol=1e-4), i


class Coarse(nn.Module):
    """A model that under autocast answers as bfloat16 might: too sure that attacks succeed, by ``optimism`` logits."""

    def __init__(self, model, y_logit, optimism):
        super().__init__()
        self.model, self.y_logit, self.optimism = model, y_logit, optimism

    def forward(self, x):
        logits = self.model(x).to(x.dtype)
        if torch.is_autocast_enabled("cpu"):
            logits = logits - self.optimism * F.one_hot(
                torch.full((len(x),), self.y_logit), logits.shape[1]
            )
        return logits


def test_success_counts_only_when_float32_confirms_it():
    """An attack that believed the coarse logits would stop at once, with the image that it was given."""
    model, x, _ = toy_problem(3, images=40)
    predictions = model(x).argmax(1)
    x, y = x[predictions == 0], predictions[predictions == 0]
    eps = 4 * EPS["linf"]
    exact = apgd.apgd_ensemble(model, x, y, eps, noise_of(x), steps=20, targets=2, norm="linf")
    coarse = Coarse(model, 0, optimism=50.0)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = apgd.apgd_ensemble(coarse, x, y, eps, noise_of(x), steps=20, targets=2, norm="linf")
    successes = int((model(exact).argmax(1) != y).sum())
    assert successes > 0
    assert abs(int((model(x_adv).argmax(1) != y).sum()) - successes) <= 1


def test_float32_steps_finish_what_coarse_logits_could_not():
    """Logits whose gradient is lost in low precision: only the float32 steps make progress."""

    class Blind(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x)
            return (
                logits.detach().to(x.dtype) + 0 * x.sum()
                if torch.is_autocast_enabled("cpu")
                else logits
            )

    model, x, y = toy_problem(3, images=40)
    eps = 6 * EPS["linf"]
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = apgd.apgd_ensemble(
            Blind(model), x, y, eps, noise_of(x), steps=10, targets=2, norm="linf"
        )
    check_within_budget(x, x_adv, eps, norm="linf")
    assert (model(x_adv).argmax(1) != y).any()
    assert (margin_loss(model(x_adv), y) > margin_loss(model(x), y)).float().mean() > 0.9


def test_leaves_model_and_generator_unchanged():
    model, x, y = toy_problem(3)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    apgd.apgd_ensemble(model, x, y, EPS["linf"], noise_of(x), steps=5, targets=2, norm="linf")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
