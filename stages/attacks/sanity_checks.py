"""Diagnostics that need the model: is it what an attack assumes, and did the attack try hard enough?

Each is computed on the images given; n is said. Attacks here start from images that the model gets right.
"""

import copy
import dataclasses
import io
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.attacks import perturbations, suite
from stages.attacks.minimum_eps import largest
from stages.attacks.perturbations import loss_and_gradient, margin_loss, normalize_noise
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import EARLY_STOP_MARGIN, NoiseSampler, distance, quantize_8bit
from stages.core.checks import CheckResult, judge
from stages.core.params import AttackEval
from stages.models.inference import frozen_eval_mode, predict_logits

IMAGES = 64
REPEATS, ALONE, FINITE, POINTS, RESTARTS = 5, 4, 8, 10, 5
LIMITS = {"D13": 0.01, "D16": 0.02, "D22": 0.02, "D24": 0.005}  # share broken by PGD with more of something: WARN above it


def run_sanity_checks(target: ModelUnderAttack, positions: np.ndarray, eps: float, p: AttackEval) -> list[dict[str, Any]]:
    """D1 to D7, D12 to D16, D22 to D24, as diagnostics.json keeps them, on at most IMAGES of the images at these positions."""
    positions = positions[target.at(positions).sample(IMAGES)]
    whole = dataclasses.replace(target, batch_size=max(1, len(positions)))
    ((_, x, y, noise),) = whole.batches(positions)
    found = [
        logits_not_probabilities(target.model, x),
        same_answer(target.model, x),
        state_restored(target.model, x, y, eps, target.norm),
        zero_gradients(target.model, x, y, eps, noise, target.norm),
        gradient_agrees(target.model, x, y),
        stable_loss(target.model, x, y, eps, noise, target.norm),
    ]
    right = (margin_loss(predict_logits(target.model, x), y) <= 0).cpu().numpy()
    if not right.any():
        nothing = ("D1", "D12", "D13", "D14", "D15", "D16", "D22", "D23", "D24")
        found += [judge(id, float("nan"), 0) for id in nothing]
    else:
        ((_, x, y, noise),) = whole.batches(positions[right])
        found += strength(target, x, y, noise, eps, p.pgd_steps)
    return [asdict(finding) for finding in found]


def logits_not_probabilities(model: nn.Module, x: Tensor) -> CheckResult:
    """D2: outputs in [0, 1] that add up to one look like softmax, whose gradients vanish."""
    out = predict_logits(model, x)
    looks = bool((out >= -1e-5).all() and (out <= 1 + 1e-5).all() and ((out.sum(1) - 1).abs() < 1e-5).all())
    return judge("D2", float(looks), len(x), fail=0)


def same_answer(model: nn.Module, x: Tensor) -> CheckResult:
    """D3: largest distance between normalised logits of the same pictures, five times in a batch and alone; in the mode that
    the model is in."""
    model, x = copy.deepcopy(model), x[:16]  # a model in train mode would be changed
    with torch.no_grad():
        answers = [model(x) for _ in range(REPEATS)]
        answers.append(torch.cat([model(x[i : i + 1]) for i in range(min(ALONE, len(x)))] + [answers[0][ALONE:]]))
    unit = [a / (a.norm(dim=1, keepdim=True) + 1e-10) for a in answers]
    return judge("D3", max(float((a - unit[0]).norm(dim=1).max()) for a in unit[1:]), len(x), fail=1e-4)


def state_restored(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> CheckResult:
    """D4: tensors, modes and gradients that an attack changed, and modules that were in train mode before it."""

    def state() -> list[Tensor | bool | None]:
        tensors = [value.clone() for value in model.state_dict().values()]
        gradients = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
        return [*tensors, *gradients, *(p.requires_grad for p in model.parameters()), *(m.training for m in model.modules())]

    before = state()
    perturbations.pgd(model, x[:4], y[:4], eps, alpha=eps, steps=2, norm=norm)
    pairs = zip(before, state(), strict=True)
    changed = sum(not torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is not b for a, b in pairs)
    return judge("D4", float(changed + sum(module.training for module in model.modules())), min(4, len(x)), fail=0)


def zero_gradients(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, norm: str) -> CheckResult:
    """D5: the largest share of images with no gradient, of cross-entropy or margin, at the image or at a random start."""
    start = perturbations.project(x + eps * normalize_noise(noise("uniform", 0), norm), x, eps, norm)
    shares = []
    with frozen_eval_mode(model), torch.autocast(x.device.type, enabled=False):
        for point in (x, start):
            for gradient in (loss_and_gradient(model, point, y)[2], _margin_gradient(model, point, y)):
                shares.append(float((gradient.flatten(1).abs().sum(1) == 0).float().mean()))
    return judge("D5", max(shares), len(x), warn=0.01, fail=0.1)


def _margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(margin_loss(model(x), y).sum(), x)[0]


def gradient_agrees(model: nn.Module, x: Tensor, y: Tensor) -> CheckResult:
    """D6: relative error of the margin's derivative along the sign of its gradient, autograd against a central difference in
    double precision; the largest of eight images."""
    model = copy.deepcopy(model).cpu().double()
    x, y, h = x[:FINITE].cpu().double(), y[:FINITE].cpu(), 1e-6
    with frozen_eval_mode(model):
        gradient = _margin_gradient(model, x, y)
        with torch.no_grad():
            ahead, behind = (margin_loss(model(x + side * h * gradient.sign()), y) for side in (1, -1))
    expected, measured = gradient.abs().flatten(1).sum(1), (ahead - behind) / (2 * h)
    known = expected > 0  # without a gradient there is no direction: that is D5
    error = ((measured - expected).abs() / expected)[known]
    return judge("D6", float(error.max()) if known.any() else float("nan"), int(known.sum()), fail=0.05)


def stable_loss(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, norm: str) -> CheckResult:
    """D7: mean change of the cross-entropy over random points in the ball, relative to its mean at the images."""
    points = [(x + eps * normalize_noise(noise("uniform", draw), norm)).clamp(0, 1) for draw in range(POINTS)]
    first, *others = (nn.functional.cross_entropy(predict_logits(model, point), y, reduction="none") for point in [x, *points])
    change = torch.stack([(other - first).abs() for other in others]).mean() / first.mean().clamp_min(1e-12)
    return judge("D7", float(change), len(x), warn=0.1)


class _Recorder(nn.Module):
    """A model that remembers how far ahead the wrong classes were at every call."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y
        self.leads: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.leads.append(margin_loss(logits.detach(), self.y))
        return logits


MARGIN = 0.0  # instead of a scale: the margin is climbed, not cross-entropy


class _Rescaled(nn.Module):
    """Each image's logits times its own scale (B,): cross-entropy saturates elsewhere. Where the scale is MARGIN: 0 for class y
    and the sign of the margin for the others, of which cross-entropy has the margin's gradient at any scale."""

    def __init__(self, model: nn.Module, y: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.scale = model, y, scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        ahead = margin_loss(logits, self.y)
        sign = ahead / (ahead.detach().abs() + 1e-12)  # (B,) +1 or -1, with the margin's direction of growth
        margin = sign[:, None].expand_as(logits).scatter(1, self.y[:, None], 0.0)
        return torch.where(self.scale == MARGIN, margin, self.scale * logits)


def strength(target: ModelUnderAttack, x: Tensor, y: Tensor, noise: NoiseSampler, eps: float, steps: int) -> list[CheckResult]:
    """D1, D12 to D16 and D22 to D24: PGD against the same with more of everything, on images that the model gets right."""
    n, norm, model, twin = len(x), target.norm, target.model, target.twin

    def broken(x_adv: Tensor, y: Tensor = y) -> Tensor:
        return margin_loss(predict_logits(model, x_adv), y) > 0

    recorder = _Recorder(twin, y)
    start = noise("uniform", 0)
    with target.fabric.autocast():
        x_adv = perturbations.pgd(recorder, x, y, eps, start, alpha=2.5 * eps / steps, steps=steps, norm=norm)
        far = suite.pgd(twin, x, y, largest(norm, x), noise, steps=max(steps, 20), restarts=1, norm=norm)
    fooled = broken(x_adv)
    leads = torch.stack(recorder.leads).float()  # (steps + 1, n)
    left = ~fooled
    missed = (leads.amax(0) > EARLY_STOP_MARGIN) & left
    more = dict.fromkeys(LIMITS, 0)
    if left.any():
        fields = (field[left] for field in (x, y, x_adv))
        more |= harder(target, *fields, [noise("uniform", draw)[left] for draw in range(RESTARTS)], eps, steps)
    if left.any() and _coarse(target):
        how = {"alpha": 2.5 * eps / steps, "steps": steps, "norm": norm}
        with torch.autocast(x.device.type, enabled=False):
            precise = perturbations.pgd(twin, x[left], y[left], eps, start[left], **how)
        more["D24"] = int(broken(precise, y[left]).sum())
    return [
        _budget(x, x_adv, eps, norm),
        _saved(model, x, x_adv, fooled, y),
        judge("D12", float((~broken(far)).float().mean()), n, fail=0.05),
        _converged(leads, fooled),
        judge("D15", float(missed.float().mean()), n, warn=0),
        *(judge(id, images / n, n, warn=LIMITS[id], images=images) for id, images in more.items()),
    ]


def harder(
    target: ModelUnderAttack, x: Tensor, y: Tensor, reached: Tensor, starts: list[Tensor], eps: float, steps: int
) -> dict[str, int]:
    """How many of these images, which PGD from the first start left at ``reached``, are broken by as many steps again of half
    the size (D13), from the other starts (D16), with another loss or scale of the logits (D22). As one batch: a few images at
    a time would take twice as long."""
    trials = [("D13", (reached - x) / eps, 0.5, 1.0)]  # diagnostic, start, step size relative to PGD's, scale of the logits
    trials += [("D16", start, 1.0, 1.0) for start in starts[1:]]
    trials += [("D22", starts[0], 1.0, scale) for scale in (0.1, 10.0, MARGIN)]
    count, size = len(trials), torch.tensor([trial[2] for trial in trials]).to(x)
    x, y, start = x.repeat(count, 1, 1, 1), y.repeat(count), torch.cat([trial[1] for trial in trials])
    scale = torch.tensor([trial[3] for trial in trials]).to(x).repeat_interleave(len(reached))
    alpha = 2.5 * eps / steps * size.repeat_interleave(len(reached))[:, None, None, None]
    broken = []
    for part in torch.arange(len(x), device=x.device).split(target.batch_size):
        network = _Rescaled(target.twin, y[part], scale[part])
        with target.fabric.autocast():
            how = {"alpha": alpha[part], "steps": steps, "norm": target.norm}
            x_adv = perturbations.pgd(network, x[part], y[part], eps, start[part], **how)
        broken.append(margin_loss(predict_logits(target.model, x_adv), y[part]) > 0)
    by_trial = torch.cat(broken).view(count, -1)  # (trials, images)
    ids = [trial[0] for trial in trials]
    return {id: int(by_trial[[i for i, other in enumerate(ids) if other == id]].any(0).sum()) for id in dict.fromkeys(ids)}


def _budget(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> CheckResult:
    """D1: by how much the change exceeds eps, as it is or as a picture of 8 bits, whichever is more."""
    excess = max(float(distance(picture, x, norm).max()) - eps for picture in (x_adv, quantize_8bit(x, x_adv)))
    return judge("D1", max(excess, 0.0), len(x), fail=1e-6 if norm == "linf" else 1e-6 + 1e-5 * eps)


def _saved(model: nn.Module, x: Tensor, x_adv: Tensor, fooled: Tensor, y: Tensor) -> CheckResult:
    """D23: share of images whose verdict changes when x_adv is written as PNG and read back."""
    pictures = []
    for image in quantize_8bit(x, x_adv).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        pictures.append(np.array(Image.open(stream)))
    read = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255).to(x.device)
    changed = (margin_loss(predict_logits(model, read), y) > 0) != fooled
    return judge("D23", float(changed.float().mean()), len(x), warn=0.005)


def _converged(leads: Tensor, fooled: Tensor) -> CheckResult:
    """D14: share of images, unbroken, whose best margin grew by more than 5 % of its range in the last 10 steps (or the
    last quarter of fewer than 40)."""
    best = leads.cummax(0).values  # (steps + 1, n)
    last = min(10, max(1, len(leads) // 4))
    moved = (best[-1] - best[-1 - last]) / (best[-1] - best[0]).clamp_min(1e-12)
    images = int(((moved > 0.05) & ~fooled).sum())
    return judge("D14", images / len(fooled), len(fooled), warn=0.1, images=images)


def _coarse(target: ModelUnderAttack) -> bool:
    with target.fabric.autocast():
        return torch.is_autocast_enabled(target.fabric.device.type)
