"""Diagnostics that need the model: is it what an attack assumes, and did the attack try hard enough?

Each is computed on the images given; n is said. Attacks here start from images that the model gets right.
"""

import copy
import dataclasses
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.core import attacks, perturbations
from stages.core.attacks import STOP_LEAD, Noise, distance, eight_bits
from stages.core.devices import crafting
from stages.core.diagnostics import Finding, judge
from stages.core.ensemble import Target, score
from stages.core.minimum_eps import largest
from stages.core.params import AttackEval
from stages.core.perturbations import attack_mode, in_ball, lead, loss_and_gradient

REPEATS, ALONE, FINITE, POINTS = 5, 4, 8, 10


def probe(target: Target, positions: np.ndarray, eps: float, p: AttackEval) -> list[Finding]:
    """D1 to D7, D12 to D16, D22 to D24 on the images at these positions, all in one batch."""
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
    right = (lead(score(target.model, x), y) <= 0).cpu().numpy()
    if not right.any():
        nothing = ("D1", "D12", "D13", "D14", "D15", "D16", "D22", "D23", "D24")
        return found + [judge(id, float("nan"), 0) for id in nothing]
    ((_, x, y, noise),) = whole.batches(positions[right])
    return found + strength(target, x, y, noise, eps, p.pgd_steps)


def logits_not_probabilities(model: nn.Module, x: Tensor) -> Finding:
    """D2: outputs in [0, 1] that add up to one look like softmax, whose gradients vanish."""
    out = score(model, x)
    looks = bool((out >= -1e-5).all() and (out <= 1 + 1e-5).all() and ((out.sum(1) - 1).abs() < 1e-5).all())
    return judge("D2", float(looks), len(x), fail=0)


def same_answer(model: nn.Module, x: Tensor) -> Finding:
    """D3: largest distance between normalised logits of the same pictures, five times in a batch and alone; in the mode that
    the model is in."""
    model, x = copy.deepcopy(model), x[:16]  # a model in train mode would be changed
    with torch.no_grad():
        answers = [model(x) for _ in range(REPEATS)]
        answers.append(torch.cat([model(x[i : i + 1]) for i in range(min(ALONE, len(x)))] + [answers[0][ALONE:]]))
    unit = [a / (a.norm(dim=1, keepdim=True) + 1e-10) for a in answers]
    return judge("D3", max(float((a - unit[0]).norm(dim=1).max()) for a in unit[1:]), len(x), fail=1e-4)


def state_restored(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str) -> Finding:
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


def zero_gradients(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Noise, norm: str) -> Finding:
    """D5: the largest share of images with no gradient, of cross-entropy or margin, at the image or at a random start."""
    start = perturbations.project(x + eps * in_ball(noise("uniform", 0), norm), x, eps, norm)
    shares = []
    with attack_mode(model), torch.autocast(x.device.type, enabled=False):
        for point in (x, start):
            for gradient in (loss_and_gradient(model, point, y)[2], _margin_gradient(model, point, y)):
                shares.append(float((gradient.flatten(1).abs().sum(1) == 0).float().mean()))
    return judge("D5", max(shares), len(x), warn=0.01, fail=0.1)


def _margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(lead(model(x), y).sum(), x)[0]


def gradient_agrees(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """D6: relative error of the margin's derivative along the sign of its gradient, autograd against a central difference in
    double precision; the largest of eight images."""
    model = copy.deepcopy(model).cpu().double()
    x, y, h = x[:FINITE].cpu().double(), y[:FINITE].cpu(), 1e-6
    with attack_mode(model):
        gradient = _margin_gradient(model, x, y)
        with torch.no_grad():
            ahead, behind = (lead(model(x + side * h * gradient.sign()), y) for side in (1, -1))
    expected, measured = gradient.abs().flatten(1).sum(1), (ahead - behind) / (2 * h)
    known = expected > 0  # without a gradient there is no direction: that is D5
    error = ((measured - expected).abs() / expected)[known]
    return judge("D6", float(error.max()) if known.any() else float("nan"), int(known.sum()), fail=0.05)


def stable_loss(model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: Noise, norm: str) -> Finding:
    """D7: mean change of the cross-entropy over random points in the ball, relative to its mean at the images."""
    points = [(x + eps * in_ball(noise("uniform", draw), norm)).clamp(0, 1) for draw in range(POINTS)]
    first, *others = (nn.functional.cross_entropy(score(model, point), y, reduction="none") for point in [x, *points])
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
        self.leads.append(lead(logits.detach(), self.y))
        return logits


class _Scaled(nn.Module):
    """Logits times a factor: cross-entropy saturates elsewhere."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


class _Margin(nn.Module):
    """Two logits, 0 and the sign of the margin: cross-entropy of class 0 then has the margin's gradient at any scale."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y

    def forward(self, x: Tensor) -> Tensor:
        ahead = lead(self.model(x), self.y)
        return torch.stack([torch.zeros_like(ahead), ahead / (ahead.detach().abs() + 1e-12)], 1)


def strength(target: Target, x: Tensor, y: Tensor, noise: Noise, eps: float, steps: int) -> list[Finding]:
    """D1, D12 to D16 and D22 to D24: PGD against the same with more of everything, on images that the model gets right."""
    n, norm, model, twin = len(x), target.norm, target.model, target.twin

    def broken(x_adv: Tensor, y: Tensor = y) -> Tensor:
        return lead(score(model, x_adv), y) > 0

    def run(network: nn.Module, x: Tensor, y: Tensor, start: Tensor | None, steps: int = steps) -> Tensor:
        with crafting(target.fabric):
            return perturbations.pgd(network, x, y, eps, start, alpha=2.5 * eps / steps, steps=steps, norm=norm)

    recorder = _Recorder(twin, y)
    x_adv = run(recorder, x, y, noise("uniform", 0))
    fooled = broken(x_adv)
    leads = torch.stack(recorder.leads).float()  # (steps + 1, n)
    left = ~fooled
    x_left, y_left = x[left], y[left]

    def gained(*tries: Tensor) -> float:
        """Share of all images broken by any of these pictures of the images that are left."""
        if not left.any():
            return 0.0
        return float(torch.stack([broken(one, y_left) for one in tries]).any(0).sum()) / n

    def of_left(kind: str, draw: int) -> Tensor:
        return noise(kind, draw)[left]

    findings = [_budget(x, x_adv, eps, norm), _saved(model, x, x_adv, fooled, y)]
    with crafting(target.fabric):
        far = attacks.pgd(twin, x, y, largest(norm, x), noise, steps=max(steps, 20), restarts=1, norm=norm)
    findings.append(judge("D12", float((~broken(far)).float().mean()), n, fail=0.05))
    findings += [_converged(leads, fooled), judge("D15", float(((leads.amax(0) > STOP_LEAD) & left).float().mean()), n, warn=0)]
    if not left.any():
        more = {"D13": 0.0, "D16": 0.0, "D22": 0.0, "D24": 0.0}
    else:
        start = of_left("uniform", 0)
        margin = run(_Margin(twin, y_left), x_left, torch.zeros_like(y_left), start)
        more = {
            "D13": gained(run(twin, x_left, y_left, start, 2 * steps)),
            "D16": gained(*(run(twin, x_left, y_left, of_left("uniform", draw)) for draw in range(1, 5))),
            "D22": gained(margin, *(run(_Scaled(twin, factor), x_left, y_left, start) for factor in (0.1, 10))),
            "D24": gained(_precise(twin, x_left, y_left, eps, start, steps, norm)) if _coarse(target) else 0.0,
        }
    limits = {"D13": 0.01, "D16": 0.02, "D22": 0.02, "D24": 0.005}
    return findings + [judge(id, value, n, warn=limits[id]) for id, value in more.items()]


def _budget(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> Finding:
    """D1: by how much the change exceeds eps, as it is or as a picture of 8 bits, whichever is more."""
    excess = max(float(distance(picture, x, norm).max()) - eps for picture in (x_adv, eight_bits(x, x_adv)))
    return judge("D1", max(excess, 0.0), len(x), fail=1e-6 if norm == "linf" else 1e-6 + 1e-5 * eps)


def _saved(model: nn.Module, x: Tensor, x_adv: Tensor, fooled: Tensor, y: Tensor) -> Finding:
    """D23: share of images whose verdict changes when x_adv is written as PNG and read back."""
    pictures = []
    for image in eight_bits(x, x_adv).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        pictures.append(np.array(Image.open(stream)))
    read = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255).to(x.device)
    changed = (lead(score(model, read), y) > 0) != fooled
    return judge("D23", float(changed.float().mean()), len(x), warn=0.005)


def _converged(leads: Tensor, fooled: Tensor) -> Finding:
    """D14: share of images, unbroken, whose best margin grew by more than 5 % of its range in the last 10 steps (or the
    last quarter of fewer than 40)."""
    best = leads.cummax(0).values  # (steps + 1, n)
    last = min(10, max(1, len(leads) // 4))
    moved = (best[-1] - best[-1 - last]) / (best[-1] - best[0]).clamp_min(1e-12)
    return judge("D14", float(((moved > 0.05) & ~fooled).float().mean()), len(fooled), warn=0.1)


def _coarse(target: Target) -> bool:
    with crafting(target.fabric):
        return torch.is_autocast_enabled(target.fabric.device.type)


def _precise(twin: nn.Module, x: Tensor, y: Tensor, eps: float, start: Tensor, steps: int, norm: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return perturbations.pgd(twin, x, y, eps, start, alpha=2.5 * eps / steps, steps=steps, norm=norm)
