"""The terms of the report."""

from stages.report.blocks import Block, Definitions, Details
from stages.report.results import Results
from stages.report.section import Section


def blocks(results: Results) -> list[Block]:
    """Threat model, accuracies, intervals."""
    size = {
        "linf": "no pixel value changes by more than ε",
        "l2": "the Euclidean norm of the whole perturbation is at most ε",
    }[results.budget.norm.name]
    method = "Wilson intervals for proportions, bootstrap for the others"
    if results.groups < results.n:
        resamples = results.p.evaluate.bootstrap
        method = f"cluster bootstrap over {results.clusters} ({resamples:,} resamples)"
    terms = Definitions(
        [
            (
                "Threat model",
                "The attacker knows the model and its weights (white-box) and wants any wrong "
                "prediction (untargeted). The perturbation δ is added to the model’s input, "
                "after cropping and resizing; ‖δ‖ ≤ ε in "
                f"{results.budget.norm.symbol}: {size}.",
            ),
            (
                "Clean accuracy",
                "Fraction of the test images classified correctly without attack.",
            ),
            (
                "Robust accuracy",
                "Fraction of the test images classified correctly without attack and under "
                "every attack with at most this ε that was run on them (worst case per image). "
                "An upper bound: a stronger attack can only lower it.",
            ),
            (
                "Attack success rate",
                "Of the images classified correctly without attack, the fraction misclassified "
                "under attack.",
            ),
            (
                "Confidence intervals",
                f"{results.level}: {method}. Differences between the models are paired; their "
                "p values are of a permutation test in which the changes of whole "
                f"{results.clusters} change sign.",
            ),
        ]
    )
    return [Details("What the terms mean", [terms])]


SECTION = Section("definitions", "Definitions", blocks)
