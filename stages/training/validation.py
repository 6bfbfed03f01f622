"""How an epoch is judged: on validation photographs, clean and attacked, in eval mode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from stages.attacks.perturbations import pgd
from stages.models.batches import DatasetSplit
from stages.models.inference import frozen_eval_mode

Row = dict[str, float]


@dataclass(frozen=True)
class Validation:
    """Judge by PGD within ``eps`` of ``norm``, ``steps`` steps of eps / 4, on the first ``images`` pictures of ``split``.

    score: of a row; the weights with the largest (a tuple) are kept.
    measures: (model, x, y, eps, noise, norm) -> name -> (B,): further columns, by their means over the pictures.
    watch: of all rows up to now -> further columns of the last.
    alarm: of all rows up to now -> why training must stop; empty if it need not.
    """

    split: DatasetSplit
    norm: str
    eps: float
    steps: int
    images: int
    score: Callable[[Row], tuple[float, ...]]
    measures: Callable[[nn.Module, Tensor, Tensor, float, Tensor, str], dict[str, Tensor]] = lambda *_: {}
    watch: Callable[[Sequence[Row]], Row] = lambda history: {}
    alarm: Callable[[Sequence[Row]], str] = lambda history: ""


def judge(fabric: Fabric, model: nn.Module, v: Validation, seed: int, batch_size: int) -> Row:
    """Losses and accuracies on the validation pictures; attacked at the same budget and from the same noise every time."""
    labels: list[Tensor] = []
    clean: list[Tensor] = []
    attacked: list[Tensor] = []
    measured: list[dict[str, Tensor]] = []
    noise_source = torch.Generator().manual_seed(seed)
    with frozen_eval_mode(model), fabric.autocast():
        for start in range(0, len(v.split), batch_size):
            x, y = v.split.batch(np.arange(start, min(start + batch_size, len(v.split))), fabric.device)
            labels.append(y)
            with torch.no_grad():
                clean.append(model(x))
            if (few := v.images - start) > 0:
                x, y = x[:few], y[:few]
                noise = torch.rand(x.shape, generator=noise_source).mul_(2).sub_(1).to(x)
                # To the last step, also where it has succeeded: a loss at the boundary would flatter the weaker epoch.
                x_adv = pgd(model, x, y, v.eps, noise, alpha=v.eps / 4, steps=v.steps, norm=v.norm)
                with torch.no_grad():
                    attacked.append(model(x_adv))
                measured.append(v.measures(model, x, y, v.eps, noise, v.norm))
    y, logits, logits_adv = torch.cat(labels), torch.cat(clean), torch.cat(attacked)
    y_adv = y[: len(logits_adv)]
    return {
        "val_loss": F.cross_entropy(logits, y).item(),
        "val_clean_accuracy": (logits.argmax(1) == y).float().mean().item(),
        "val_balanced_accuracy": float(balanced_accuracy_score(y.cpu(), logits.argmax(1).cpu())),
        "val_robust_loss": F.cross_entropy(logits_adv, y_adv).item(),
        "val_robust_accuracy": (logits_adv.argmax(1) == y_adv).float().mean().item(),
        **{name: torch.cat([part[name] for part in measured]).float().mean().item() for name in measured[0]},
    }
