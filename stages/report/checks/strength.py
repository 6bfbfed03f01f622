"""Were the attacks strong enough, and do their results fit together?"""

import itertools

from stages.core.predictions import (
    CLEAN,
    EPS_TOLERANCE,
    correct_under,
    eps_values,
    is_correct,
    select,
)
from stages.report.checks.check import NO_DATA, Check, Measured, check, measured
from stages.report.results import ModelResults, Results


@check(
    "D8",
    "Accuracy increase from a weaker to a stronger attack",
    reason="Noise, one step, many steps: each must be at least as harmful as the one before.",
    remedy="The stronger attack is misconfigured: look at its steps and step size.",
    warn=0,
    fail=0.02,
    rate=True,
)
def attack_order(results: Results, model: ModelResults) -> Measured:
    """The largest increase, between the strongest attack of each kind."""
    accuracies = []
    for kind in ("noise", "single-step", "iterative"):
        outcomes = [
            correct_under(model.rows, attack, results.eps).mean()
            for attack in results.attacks_of(kind)
        ]
        accuracies.append(min(outcomes))
    increases = [stronger - weaker for weaker, stronger in itertools.pairwise(accuracies)]
    return Measured(max(0.0, *increases), results.n)


@check(
    "D18",
    "Images whose margin loss PGD does not increase",
    reason="An attack that descends the loss, or does nothing, looks like robustness.",
    remedy="The sign of the gradient, or gradients that vanish: look at D5 and D6.",
    warn=0,
    fail=0.02,
    rate=True,
)
def idle_attack(results: Results, model: ModelResults) -> Measured:
    """Of the correctly classified images."""
    correct = is_correct(select(model.rows))
    if not correct.any():
        return NO_DATA
    found_by = select(model.rows, "pgd", results.eps)["found_by"]
    idle = (found_by == CLEAN).to_numpy()[correct]
    return Measured(idle.mean(), len(idle))


@check(
    "D28",
    "Success rates: minimum perturbation vs. all attacks",
    reason="Two ways to the same quantity: bisection on some images, all attacks on all images.",
    remedy="Raise attack_eval.subset or min_eps_rounds.",
    warn=0.1,
)
def minimum_eps_agreement(results: Results, model: ModelResults) -> Measured:
    """The largest difference over ε."""
    curve = results.plot("minimum_eps", model.name)
    initially = is_correct(select(model.rows))
    if not len(curve) or not initially.any():
        return NO_DATA
    differences = []
    for eps in eps_values(model.rows):
        found = curve.loc[curve["eps"] <= eps * (1 + EPS_TOLERANCE), "changed"].max()
        wrong = ~is_correct(results.worst(model, eps))
        differences.append(abs(found - wrong[initially].mean()))
    return Measured(max(differences), int(curve["count"].max()))


CHECKS = (
    attack_order,
    Check(
        "D12",
        "Accuracy where no image is left to recognize (ε = 64/255 in L∞)",
        measured("attack_checks", "unbounded"),
        reason="An attack that fails even there is broken.",
        remedy="Look at D5, D6 and the number of steps.",
        fail=0.05,
        rate=True,
    ),
    Check(
        "D13",
        "Extra successes of as many further PGD steps of half the size",
        measured("attack_checks", "more_steps"),
        reason="PGD must have converged.",
        remedy="Raise attack_eval.pgd_steps.",
        warn=0.03,
        rate=True,
    ),
    Check(
        "D14",
        "Attacks that have not converged",
        measured("attack_checks", "unconverged"),
        reason="A loss that still grows at the end would grow further.",
        remedy="Raise attack_eval.pgd_steps.",
        warn=0.1,
        rate=True,
    ),
    Check(
        "D15",
        "Adversarial iterates that were not returned",
        measured("attack_checks", "lost_iterates"),
        reason="A success on the way must not be lost at the end.",
        remedy="Return the best iterate, not the last one.",
        warn=0,
    ),
    Check(
        "D16",
        "Extra successes of two more PGD restarts",
        measured("attack_checks", "restarts"),
        reason="One random start may be unlucky.",
        remedy="Raise attack_eval.pgd_restarts.",
        warn=0.03,
        rate=True,
    ),
    idle_attack,
    minimum_eps_agreement,
)
