"""Sanity checks that need the model: is it what attacks assume, and was the attack strong enough?

After Carlini et al. (arXiv:1902.06705), AutoAttack's checks (2003.01690) and Pintor et al. (2106.09947). Attacks start from
images that are classified correctly. The checks that tables suffice for are in `stages.evaluation.diagnostics`.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from stages.attacks import perturbations, suite
from stages.attacks.minimum_eps import max_eps
from stages.attacks.perturbations import (
    is_adversarial,
    loss_and_gradient,
    margin_gradient,
    margin_loss,
    pgd_step_size,
    random_start,
)
from stages.attacks.runner import ModelUnderAttack
from stages.attacks.suite import (
    EARLY_STOP_MARGIN,
    NoiseSampler,
    normalize_noise,
    perturbation_norm,
    quantize_8bit,
)
from stages.core.checks import INCONCLUSIVE, CheckResult, grade
from stages.core.params import AttackEvalParams
from stages.models.inference import frozen_eval_mode, predict_logits

MODEL_IMAGES = 32  # D2 to D7
REPEATS, N_SINGLE = 5, 4  # D3: forward passes of a batch, and images that are also evaluated alone
N_FINITE_DIFFERENCE = 8  # D6: images
N_NOISE = 10  # D7: random points in the ball
UNBOUNDED_IMAGES = 64  # D12
RESTARTS = 3  # D16, the first one included
STRONGER = ("D13", "D16", "D22", "D24")
EXTRA_SUCCESSES = 0.03  # WARN above


def run_sanity_checks(
    target: ModelUnderAttack,
    positions: np.ndarray,
    robust: np.ndarray,
    eps: float,
    p: AttackEvalParams,
) -> list[CheckResult]:
    """D1 to D7, D12 to D16, D22 to D24. Of several processes each makes the checks D2 to D7, of a few images, itself.

    Args:
        target: the model and its images.
        positions: of the images that the checks are made on; those of the model alone on fewer.
        robust: (N,) bool, of all images: no attack so far succeeded.
        eps: in pixel units.
        p: of the attacks.
    """
    x, y, noise = target.load(
        positions[target.subset(positions).stratified_positions(MODEL_IMAGES)]
    )
    results = [
        check_outputs_are_logits(target.model, x),
        check_batch_dependence(target.model, x),
        check_state_restored(target.model, x, y, eps, norm=target.norm),
        check_zero_gradients(target.model, x, y, eps, noise, norm=target.norm),
        check_gradient(target.model, x, y),
        check_loss_smoothness(target.model, x, y, eps, noise, norm=target.norm),
    ]
    wrong = target.map_batches(
        positions, lambda _, x, y, noise: {"wrong": is_adversarial(target.model, x, y)}
    )["wrong"]
    if wrong.all():
        inapplicable = ("D1", "D12", "D13", "D14", "D15", "D16", "D22", "D23", "D24")
        return results + [CheckResult(check, INCONCLUSIVE, None, "", 0) for check in inapplicable]
    return results + check_attack_strength(
        target, positions[~wrong.numpy()], robust, eps, p.pgd_steps
    )


def check_outputs_are_logits(model: nn.Module, x: Tensor) -> CheckResult:
    """D2: outputs in [0, 1] that add up to one look like softmax, whose gradients vanish."""
    out = predict_logits(model, x)
    softmax = bool(
        (out >= -1e-5).all() and (out <= 1 + 1e-5).all() and ((out.sum(1) - 1).abs() < 1e-5).all()
    )
    return grade("D2", float(softmax), len(x), fail=0)


def check_batch_dependence(model: nn.Module, x: Tensor) -> CheckResult:
    """D3: largest distance between normalized logits of the same images, five times in a batch and alone.

    In the mode that the model is in: BatchNorm in train mode must show here.
    """
    model, x = copy.deepcopy(model), x[:16]  # a model in train mode would be changed
    with torch.no_grad():
        outputs = [model(x) for _ in range(REPEATS)]
        single = [model(x[i : i + 1]) for i in range(min(N_SINGLE, len(x)))]
        outputs.append(torch.cat([*single, outputs[0][N_SINGLE:]]))
    unit = [out / (out.norm(dim=1, keepdim=True) + 1e-10) for out in outputs]
    return grade(
        "D3", max(float((out - unit[0]).norm(dim=1).max()) for out in unit[1:]), len(x), fail=1e-4
    )


def check_state_restored(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str
) -> CheckResult:
    """D4: tensors, modes and gradients that an attack changed, and modules that were in train mode before it."""

    def state() -> list[Tensor | bool | None]:
        tensors = [value.clone() for value in model.state_dict().values()]
        gradients = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
        return [
            *tensors,
            *gradients,
            *(p.requires_grad for p in model.parameters()),
            *(m.training for m in model.modules()),
        ]

    before = state()
    perturbations.pgd(model, x[:4], y[:4], eps, alpha=eps, steps=2, norm=norm)
    pairs = zip(before, state(), strict=True)
    changed = sum(
        not torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is not b
        for a, b in pairs
    )
    return grade(
        "D4",
        float(changed + sum(module.training for module in model.modules())),
        min(4, len(x)),
        fail=0,
    )


def check_zero_gradients(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, norm: str
) -> CheckResult:
    """D5: the largest fraction of images with no gradient, of cross-entropy or margin, at the image or at a random start."""
    fractions = []
    with frozen_eval_mode(model), torch.autocast(x.device.type, enabled=False):
        for point in (x, random_start(x, eps, noise("uniform", 0), norm=norm)):
            gradients = (loss_and_gradient(model, point, y)[2], margin_gradient(model, point, y))
            fractions += [
                float((gradient.flatten(1).abs().sum(1) == 0).float().mean())
                for gradient in gradients
            ]
    return grade("D5", max(fractions), len(x), warn=0, fail=0.1)


def check_gradient(model: nn.Module, x: Tensor, y: Tensor) -> CheckResult:
    """D6: relative error of the margin's derivative along the sign of its gradient, the largest of eight images.

    Autograd against a central difference, in double precision.
    """
    model = copy.deepcopy(model).cpu().double()
    x, y, h = x[:N_FINITE_DIFFERENCE].cpu().double(), y[:N_FINITE_DIFFERENCE].cpu(), 1e-6
    with frozen_eval_mode(model):
        gradient = margin_gradient(model, x, y)
        with torch.no_grad():
            ahead, behind = (
                margin_loss(model(x + side * h * gradient.sign()), y) for side in (1, -1)
            )
    expected, measured = gradient.abs().flatten(1).sum(1), (ahead - behind) / (2 * h)
    defined = expected > 0  # without a gradient there is no direction: that is D5
    error = ((measured - expected).abs() / expected)[defined]
    return grade(
        "D6", float(error.max()) if defined.any() else math.nan, int(defined.sum()), fail=0.05
    )


def check_loss_smoothness(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, noise: NoiseSampler, *, norm: str
) -> CheckResult:
    """D7: mean change of the cross-entropy over random points in the ball, relative to its mean at the images."""
    points = [
        (x + eps * normalize_noise(noise("uniform", sample), norm=norm)).clamp(0, 1)
        for sample in range(N_NOISE)
    ]
    first, *others = (
        nn.functional.cross_entropy(predict_logits(model, point), y, reduction="none")
        for point in [x, *points]
    )
    change = torch.stack(
        [(other - first).abs() for other in others]
    ).mean() / first.mean().clamp_min(1e-12)
    return grade("D7", float(change), len(x), warn=0.1)


class MarginRecorder(nn.Module):
    """A model that records the margin loss at every call."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y
        self.margins: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits = self.model(x)
        self.margins.append(margin_loss(logits.detach(), self.y))
        return logits


class LossVariant(nn.Module):
    """A model whose outputs make cross-entropy another loss, image by image.

    Where ``use_margin`` (B,) is false, the logits times ``scale`` (B,): cross-entropy saturates elsewhere. Where it is true,
    0 for class y and the sign of the margin for the others, of which cross-entropy has the margin's gradient at any scale.
    """

    def __init__(self, model: nn.Module, y: Tensor, scale: Tensor, use_margin: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.scale, self.use_margin = (
            model,
            y,
            scale[:, None],
            use_margin[:, None],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K)."""
        logits = self.model(x)
        margin = margin_loss(logits, self.y)
        sign = margin / (margin.detach().abs() + 1e-12)  # (B,) +1 or -1, with the margin's gradient
        outputs = sign[:, None].expand_as(logits).scatter(1, self.y[:, None], 0.0)
        return torch.where(self.use_margin, outputs, self.scale * logits)


def check_attack_strength(
    target: ModelUnderAttack, positions: np.ndarray, robust: np.ndarray, eps: float, steps: int
) -> list[CheckResult]:
    """D1, D12, D14, D15, D23: PGD on correctly classified images. D13, D16, D22, D24: stronger variants on the robust ones."""
    n, norm = len(positions), target.norm
    far = partial(suite.pgd, steps=max(steps, 20), restarts=1, norm=norm)

    def compute(batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler) -> dict[str, Tensor]:
        start = noise("uniform", 0)
        pgd = partial(perturbations.pgd, alpha=pgd_step_size(eps, steps), steps=steps, norm=norm)
        recorder = MarginRecorder(target.fused_model, y)
        with target.fabric.autocast():
            reduced_precision = torch.is_autocast_enabled(x.device.type)
            x_adv = pgd(recorder, x, y, eps, start)
        success = is_adversarial(target.model, x_adv, y)
        quantized = quantize_8bit(x, x_adv)
        extra = {check: torch.zeros_like(success) for check in STRONGER}
        failed = ~success & torch.from_numpy(robust[batch]).to(
            x.device
        )  # where stronger variants may succeed
        if failed.any():
            starts = [noise("uniform", sample)[failed] for sample in range(RESTARTS)]
            for check, found in extra_successes(
                target, x[failed], y[failed], x_adv[failed], starts, eps, steps
            ).items():
                extra[check][failed] = found
        if failed.any() and reduced_precision:
            with torch.autocast(x.device.type, enabled=False):
                precise = pgd(target.fused_model, x[failed], y[failed], eps, start[failed])
            extra["D24"][failed] = is_adversarial(target.model, precise, y[failed])
        return {
            "moved": torch.maximum(
                *(perturbation_norm(x, image, norm=norm) for image in (x_adv, quantized))
            ),
            "changed": is_adversarial(target.model, quantized, y) != success,
            "margins": torch.stack(recorder.margins, 1).float(),  # (B, steps + 1)
            "success": success,
            **extra,
        }

    def compute_unbounded(
        batch: np.ndarray, x: Tensor, y: Tensor, noise: NoiseSampler
    ) -> dict[str, Tensor]:
        with target.fabric.autocast():
            x_adv = far(target.fused_model, x, y, max_eps(x, norm=norm), noise)
        return {"missed": ~is_adversarial(target.model, x_adv, y)}

    found = target.map_batches(positions, compute)
    some = positions[target.subset(positions).stratified_positions(UNBOUNDED_IMAGES)]
    missed = target.map_batches(some, compute_unbounded)["missed"]
    lost = (found["margins"].amax(1) > EARLY_STOP_MARGIN) & ~found["success"]
    return [
        grade(
            "D1",
            max(float(found["moved"].max()) - eps, 0.0),
            n,
            fail=1e-6 if norm == "linf" else 1e-6 + 1e-5 * eps,
        ),
        grade("D23", float(found["changed"].float().mean()), n, warn=0.03),
        grade("D12", float(missed.float().mean()), len(missed), fail=0.05),
        _check_convergence(found["margins"], found["success"]),
        grade("D15", float(lost.float().mean()), n, warn=0),
        *(grade(check, int(found[check].sum()) / n, n, warn=EXTRA_SUCCESSES) for check in STRONGER),
    ]


@dataclass(frozen=True)
class Trial:
    """A stronger variant of PGD, and the check that it belongs to."""

    check: str
    start: Tensor  # (B, 3, H, W) noise
    relative_step_size: float = 1.0
    logit_scale: float = 1.0
    use_margin: bool = False


def extra_successes(
    target: ModelUnderAttack,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
    starts: list[Tensor],
    eps: float,
    steps: int,
) -> dict[str, Tensor]:
    """On which of these images, where every attack failed, PGD at ``x_adv``, stronger variants of PGD succeed: (B,) bool.

    As many steps again of half the size (D13), the other starts (D16), another loss or scale of the logits (D22). All
    variants run as one batch: a few images at a time would take twice as long.
    """
    trials = [Trial("D13", (x_adv - x) / eps, relative_step_size=0.5)]
    trials += [Trial("D16", start) for start in starts[1:]]
    trials += [Trial("D22", starts[0], logit_scale=scale) for scale in (0.1, 10.0)]
    trials.append(Trial("D22", starts[0], use_margin=True))

    def per_image(values: list[float]) -> Tensor:
        return torch.tensor(values, device=x.device).repeat_interleave(len(x))  # (trials * images,)

    scale, use_margin = (
        per_image([t.logit_scale for t in trials]),
        per_image([t.use_margin for t in trials]),
    )
    alpha = (
        pgd_step_size(eps, steps)
        * per_image([t.relative_step_size for t in trials])[:, None, None, None]
    )
    start = torch.cat([trial.start for trial in trials])
    x, y = x.repeat(len(trials), 1, 1, 1), y.repeat(len(trials))
    success = []
    for batch in torch.arange(len(x), device=x.device).split(target.batch_size):
        model = LossVariant(target.fused_model, y[batch], scale[batch], use_margin[batch])
        variant = partial(perturbations.pgd, alpha=alpha[batch], steps=steps, norm=target.norm)
        with target.fabric.autocast():
            candidate = variant(model, x[batch], y[batch], eps, start[batch])
        success.append(is_adversarial(target.model, candidate, y[batch]))
    by_trial = torch.cat(success).view(len(trials), -1)  # (trials, images)
    checks = [trial.check for trial in trials]
    return {
        name: by_trial[[check == name for check in checks]].any(0) for name in dict.fromkeys(checks)
    }


def _check_convergence(margins: Tensor, success: Tensor) -> CheckResult:
    """D14: fraction of images without success whose best margin loss grew by more than 5 % of its range in the last steps.

    The last 10 steps, or the last quarter of fewer than 40.
    """
    best = margins.cummax(1).values  # (n, steps + 1)
    last = min(10, max(1, margins.shape[1] // 4))
    growth = (best[:, -1] - best[:, -1 - last]) / (best[:, -1] - best[:, 0]).clamp_min(1e-12)
    images = int(((growth > 0.05) & ~success).sum())
    return grade("D14", images / len(success), len(success), warn=0.1)
