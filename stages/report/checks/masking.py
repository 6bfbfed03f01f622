"""Is robustness an illusion, because gradients lead attacks astray?"""

import numpy as np

from stages.core.predictions import correct_under, is_correct, select
from stages.report.checks.check import NO_DATA, Check, Measured, check, measured
from stages.report.results import ModelResults, Results

AFTER_ENSEMBLE = ("transfer", "universal_transfer")  # attacks that the ensemble did not start from


@check(
    "D9",
    "Images misclassified under black-box attacks only",
    reason="An attack without gradients that succeeds where those with gradients fail shows that "
    "gradients are masked.",
    remedy="Gradient masking: use attacks on another loss, or BPDA. INCONCLUSIVE: Square finds too "
    "few of the images known to fall (its power) to say that it would find others; raise "
    "attack_eval.aa_queries until n × power is enough.",
    warn=0,
    fail=0.03,
    rate=True,
)
def black_box_only(results: Results, model: ModelResults) -> Measured:
    """Square comes last in the ensemble; transfer attacks count likewise.

    The fraction of correctly classified images. Where Square was run on some of the remaining
    images only, its successes stand for all of them, and n is that much smaller. The power is the
    share of the images known to fall that Square finds; 0 where no image is known to fall, 1 where
    attacks with gradients found every image, so that none is left that they could have missed.
    """
    rows, config = model.rows, model.document("ensemble")
    ensemble = select(rows, config["name"], results.eps)
    correct, initially = is_correct(ensemble), int(is_correct(select(rows)).sum())
    if not initially:
        return NO_DATA
    remaining = config["square_remaining"]
    share = config["square_images"] / remaining if remaining else 1.0
    by_square = int((~correct & (ensemble["found_by"] == "square")).sum())
    others = [~_outcome(results, model, attack) for attack in AFTER_ENSEMBLE]
    by_transfer = int((correct & np.any(others, axis=0)).sum())
    by_surrogate = 0
    if "surrogate" in set(rows["attack"]):
        # It came before the ensemble, which leaves out what it found: compared with the others.
        gradient_attacks = results.attacks_of("single-step", "iterative")
        white_box = np.all([_outcome(results, model, a) for a in gradient_attacks], axis=0)
        by_surrogate = int((white_box & ~_outcome(results, model, "surrogate")).sum())
    value = (by_square / share + by_transfer + by_surrogate) / initially
    known = measured("attack_checks", "square_power")(results, model)
    power = known.value if known and known.n else 0.0
    return Measured(value, int(initially * share), power if remaining else 1.0)


@check(
    "D10",
    "Images misclassified under random noise but not under PGD",
    reason="An attack must find what chance finds.",
    remedy="PGD is broken, or its gradients are.",
    warn=0,
    fail=0.02,
    rate=True,
)
def noise_only(results: Results, model: ModelResults) -> Measured:
    """As a fraction of all images."""
    noise = [~_outcome(results, model, attack) for attack in results.attacks_of("noise")]
    only = np.any(noise, axis=0) & _outcome(results, model, "pgd")
    return Measured(only.mean(), len(only))


@check(
    "D17",
    "Accuracy under PGD minus accuracy under the transfer attack",
    reason="Gradients of another model must not lead further than the model's own.",
    remedy="Gradient masking: look at D5, D7 and D22.",
    fail=0,
)
def transfer_gain(results: Results, model: ModelResults) -> Measured:
    """The lowest accuracy where there are several transfer attacks."""
    transferred = [_outcome(results, model, a).mean() for a in results.attacks_of("transfer")]
    pgd = _outcome(results, model, "pgd")
    return Measured(pgd.mean() - min(transferred), len(pgd))


def _outcome(results: Results, model: ModelResults, attack: str) -> np.ndarray:
    """(n,) bool: correct under the attack at the main ε."""
    return correct_under(model.rows, attack, results.eps)


CHECKS = (
    Check(
        "D5",
        "Images with zero input gradient",
        measured("model_checks", "zero_gradients"),
        reason="Without a gradient, a gradient attack stays where it is.",
        remedy="Quantization or saturation: attack without that layer (BPDA), or rescale the "
        "logits.",
        warn=0,
        fail=0.1,
        rate=True,
    ),
    Check(
        "D7",
        "Relative loss change under random noise",
        measured("model_checks", "loss_roughness"),
        reason="On a rough loss surface, the gradient at a point says little about its "
        "surroundings.",
        remedy="More steps and restarts: raise attack_eval.pgd_steps and pgd_restarts.",
        warn=0.1,
    ),
    black_box_only,
    noise_only,
    transfer_gain,
    Check(
        "D22",
        "Extra successes of other losses and logit scales",
        measured("attack_checks", "losses"),
        reason="Cross-entropy saturates where logits are large.",
        remedy="Rely on the ensemble, which attacks the margin, too.",
        warn=0.03,
        rate=True,
    ),
)
