"""What holds for every attack of every list, in every norm."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from stages.attacks.attack import Attack, Noise
from stages.attacks.autoattack import full_ensemble
from stages.attacks.gradient import is_adversarial
from stages.attacks.registry import LEAN_ENSEMBLE, SUITE
from stages.attacks.transfer import pgd_on
from stages.attacks.verifier import check_within_budget, quantize_8bit
from stages.core.norms import NORMS, Budget
from tests.helpers.models import LinearLogits, Wrapped, smooth_problem
from tests.helpers.params import params

P = params(
    **{
        "attack_eval.pgd_restarts": 2,
        "attack_eval.curve_steps": 10,
        "attack_eval.aa_steps": 20,
        "attack_eval.aa_queries": 30,
    }
).attack_eval
EPS = {"linf": 0.04, "l2": 0.3}  # some attacks on smooth_problem succeed, some fail
CHANCE = ("uniform_noise", "gaussian_noise", "square")  # attacks without gradients


def attacks(classes: int, source: nn.Module | None = None) -> dict[str, Attack]:
    """Every attack that is run on so many classes; the transfer attack starts from ``source``."""
    every = (*SUITE, *LEAN_ENSEMBLE, *full_ensemble(classes), pgd_on(source or nn.Identity()))
    return {attack.name: attack for attack in every}


def noise_of(x: torch.Tensor, rows=None) -> Noise:
    return Noise(0, np.arange(len(x)) if rows is None else rows, x)


CASES = [(classes, name) for classes in (2, 3, 5) for name in attacks(classes)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("classes", "name"), CASES)
def test_budget_is_kept_also_in_8_bits_and_global_generators_are_left_alone(classes, name, norm):
    model, x, y = smooth_problem(classes)
    x[:4] = x[:4].round()  # pixels at the ends of the range
    x = x.contiguous(memory_format=torch.channels_last)
    attack, budget = attacks(classes, model)[name], Budget.of(norm, EPS[norm])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    x_adv = attack.run(model, x, y, budget, noise_of(x), P)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    check_within_budget(x, x_adv, budget)
    quantized = quantize_8bit(x, x_adv)
    check_within_budget(x, quantized, budget)
    assert torch.allclose(quantized * 255, (quantized * 255).round(), atol=1e-4)
    if name not in CHANCE:
        assert is_adversarial(model, x_adv, y).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("classes", "name"), CASES)
def test_neither_batch_nor_order_matter(classes, name, norm):
    model, x, y = smooth_problem(classes)
    dtype = torch.float32 if name == "fab_t" else torch.float64  # FAB knows no other
    model, x = model.to(dtype), x.to(dtype)
    attack, budget = attacks(classes, model)[name], Budget.of(norm, EPS[norm])
    together = attack.run(model, x, y, budget, noise_of(x), P)
    for rows in ([7], [11, 0, 5]):
        alone = attack.run(model, x[rows], y[rows], budget, noise_of(x[rows], np.array(rows)), P)
        assert torch.allclose(alone, together[rows], atol=1e-6), rows


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", attacks(2))
def test_linear_model_is_fooled_exactly_above_its_distance(name, norm):
    p = P.model_copy(update={"aa_steps": 50})
    model, x = LinearLogits(torch.randn(108), 0.1), 0.5 + 0.02 * torch.randn(4, 3, 6, 6)
    y, distance = model(x).argmax(1), model.distance(x, norm)
    for i, (factor, expected) in itertools.product(range(4), ((0.98, False), (1.06, True))):
        image, label = x[i : i + 1], y[i : i + 1]
        budget = Budget.of(norm, factor * distance[i].item())
        x_adv = attacks(2, model)[name].run(model, image, label, budget, noise_of(image), p)
        if not expected or name not in CHANCE:
            assert is_adversarial(model, x_adv, label).item() is expected


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", attacks(3))
def test_nothing_changes_within_eps_0(name, norm):
    model, x, y = smooth_problem(3)
    x_adv = attacks(3, model)[name].run(model, x, y, Budget.of(norm, 0.0), noise_of(x), P)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", attacks(3))
def test_logits_that_are_all_equal_end_no_run(name, norm):
    """As after a training that collapsed; the first class counts as predicted."""
    model, x, y = smooth_problem(3)
    model, budget = Wrapped(model, logits=lambda z: 0 * z), Budget.of(norm, EPS[norm])
    x_adv = attacks(3, model)[name].run(model, x, 0 * y, budget, noise_of(x), P)
    check_within_budget(x, x_adv, budget)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "key"), [("pgd", "pgd_restarts"), ("uniform_noise", "noise_draws")]
)
def test_more_restarts_are_never_weaker(name, key, norm):
    (model, x, y), counts = smooth_problem(3, images=200), []
    for scale in (0.1, 0.25, 0.5, 2):
        budget, before = Budget.of(norm, EPS[norm] * scale), torch.zeros_like(y, dtype=torch.bool)
        for repeats in (1, 2, 8):
            p = P.model_copy(update={key: repeats, "pgd_steps": 1})
            x_adv = attacks(3)[name].run(model, x, y, budget, noise_of(x), p)
            success = is_adversarial(model, x_adv, y)
            assert (before <= success).all()
            before = success
            counts.append(int(success.sum()))
    assert counts[2::3] > counts[::3], "restarts that find nothing more are none"


# Without a gradient: what compares with thresholds, and what refuses an input that requires one.
WITHOUT_GRADIENT = {
    "comparison": lambda x: (x[..., None] > torch.linspace(0.1, 0.9, 8)).float().mean(-1),
    "NumPy": lambda x: torch.from_numpy(np.round(x.numpy() * 8) / 8),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("inputs", WITHOUT_GRADIENT)
@pytest.mark.parametrize("name", attacks(3))
def test_model_without_gradient_is_attacked_as_far_as_that_goes(name, inputs, norm):
    network, x, _ = smooth_problem(3)
    model = Wrapped(network, inputs=WITHOUT_GRADIENT[inputs]).eval()
    y, budget = model(x).argmax(1), Budget.of(norm, 4 * EPS[norm])
    x_adv = attacks(3, model)[name].run(model, x, y, budget, noise_of(x), P)
    check_within_budget(x, x_adv, budget)
    if name == "square":
        assert is_adversarial(model, x_adv, y).any()


def test_other_errors_of_a_model_are_not_swallowed():
    network, x, y = smooth_problem(3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        attacks(3)["fgsm"].run(network, x[..., :-1], y, Budget.of("linf", 0.1), noise_of(x), P)


def test_noise_belongs_to_the_image():
    like = torch.zeros(3, 3, 5, 5)
    batch, single = Noise(0, np.array([4, 9, 2]), like), Noise(0, np.array([9]), like[:1])
    for distribution in ("uniform", "gaussian"):
        assert torch.equal(batch(distribution, 3)[1], single(distribution, 3)[0])
        chosen = batch.of(torch.tensor([False, True, False]))
        assert torch.equal(chosen(distribution, 3), single(distribution, 3))
        others = [Noise(1, batch.rows, like)(distribution, 3), batch(distribution, 4)]
        assert not any(torch.equal(batch(distribution, 3), other) for other in others)
    images = batch("uniform", 0)
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])
