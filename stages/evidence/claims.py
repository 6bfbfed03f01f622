"""The claims of a pack, checked one by one: its model scores its images again, without an attack.

A pack can refute robustness, never prove it: what it holds no adversarial example for, a stronger
attack may still change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.evidence.pack import EvidencePack, pixels_sha256
from stages.models.inference import predict_logits

BATCH = 64  # images in one forward pass: bounds memory
LoadImages = Callable[[int, int], np.ndarray]  # rows start..stop -> uint8 (B, H, W, 3)


@dataclass(frozen=True)
class Claim:
    """What a pack says, and whether that was found.

    Attributes:
        text: what is claimed.
        found: what was found instead, or as claimed.
        holds: whether both agree.
    """

    text: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}: {self.text}: {self.found}"


@dataclass
class Score:
    """What was found in all images.

    Attributes:
        other_pixels: images whose pixels aren't those that were attacked.
        out_of_range: perturbed images with a pixel value outside [0, 1].
        largest: norm of the largest perturbation.
        other_clean: images that the model predicts differently than claimed, clean.
        other_adversarial: likewise, of those with a perturbation.
        no_example: perturbed images that were misclassified before, or still are classified
            correctly.
        clean_correct: images classified correctly.
        robust_correct: of these, also with their perturbation.
    """

    other_pixels: int = 0
    out_of_range: int = 0
    largest: float = 0.0
    other_clean: int = 0
    other_adversarial: int = 0
    no_example: int = 0
    clean_correct: int = 0
    robust_correct: int = 0


def check_claims(pack: EvidencePack, model: nn.Module, load: LoadImages) -> list[Claim]:
    """Score all images of a pack in float32, and compare with what it claims.

    Args:
        pack: an intact one.
        model: images (B, 3, H, W) in [0, 1] to logits (B, K) in the order of its classes.
        load: the images of the pack's rows.
    """
    found = Score()
    for start in range(0, len(pack.rows), BATCH):
        stop = min(start + BATCH, len(pack.rows))
        _score(pack, model, load(start, stop), start, stop, found)
    claimed, budget, n = pack.manifest, pack.manifest.budget, len(pack.rows)
    perturbed = int(pack.perturbed.sum())
    most = budget.eps + budget.norm.tolerance(budget.eps)
    clean, robust = claimed.clean_correct, claimed.robust_correct
    return [
        Claim(
            f"the {n} images are those that were attacked",
            f"{found.other_pixels} with other pixels",
            not found.other_pixels,
        ),
        Claim(
            f"the {perturbed} perturbed images are in [0, 1]",
            f"{found.out_of_range} that are not",
            not found.out_of_range,
        ),
        Claim(
            f"perturbations are within {budget}",
            f"at most {budget.norm.format(found.largest)}",
            found.largest <= most,
        ),
        Claim(
            f"predictions of the {n} clean images",
            f"{found.other_clean} other ones",
            not found.other_clean,
        ),
        Claim(
            f"predictions of the {perturbed} perturbed images",
            f"{found.other_adversarial} other ones",
            not found.other_adversarial,
        ),
        Claim(
            f"the {perturbed} perturbed images are adversarial examples",
            f"{found.no_example} that are not",
            not found.no_example,
        ),
        Claim(
            f"clean accuracy {clean / n:.1%}, {clean} of {n}",
            f"{found.clean_correct} of {n}",
            found.clean_correct == clean,
        ),
        Claim(
            f"robust accuracy at most {robust / n:.1%}, {robust} of {n}",
            f"{found.robust_correct} of {n}",
            found.robust_correct == robust,
        ),
    ]


def _score(
    pack: EvidencePack, model: nn.Module, images: np.ndarray, start: int, stop: int, found: Score
) -> None:
    """Add what is found in these rows."""
    rows, perturbed = pack.rows.iloc[start:stop], pack.perturbed[start:stop]
    digests = [pixels_sha256(image) for image in images]
    found.other_pixels += int((rows["pixels_sha256"] != digests).sum())

    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.int16)  # (B, 3, H, W), 0 to 255
    levels = torch.from_numpy(pack.perturbations(start, stop))
    x_adv = x + levels
    found.out_of_range += int(((x_adv < 0) | (x_adv > 255)).flatten(1).any(1).sum())
    size = pack.manifest.budget.norm.size(levels / 255)
    found.largest = max(found.largest, float(size.max()))

    classes = np.array(pack.manifest.classes)
    clean = classes[_predict(model, x)]
    adversarial = clean.copy()
    if perturbed.any():
        adversarial[perturbed] = classes[_predict(model, x_adv[torch.tensor(perturbed)])]
    found.other_clean += int((rows["prediction"] != clean).sum())
    found.other_adversarial += int((rows["adversarial_prediction"] != adversarial)[perturbed].sum())
    correct = (rows["label"] == clean).to_numpy()
    still_correct = (rows["label"] == adversarial).to_numpy()
    found.no_example += int((~correct | still_correct)[perturbed].sum())
    found.clean_correct += int(correct.sum())
    found.robust_correct += int((correct & still_correct).sum())


def _predict(model: nn.Module, x: Tensor) -> np.ndarray:
    """(B,) class numbers of x (B, 3, H, W), whole numbers from 0 to 255."""
    return predict_logits(model, x.float() / 255).argmax(1).numpy()
