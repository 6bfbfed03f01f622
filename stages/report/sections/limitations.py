"""What limits all results of this pipeline."""

from stages.report.blocks import Block, Items
from stages.report.results import Results
from stages.report.section import Section


def sentences(results: Results) -> list[str]:
    """One for each."""
    anatomy = (
        "The classes are types of the transformation zone: normal anatomy, not grades of disease. "
    )
    return [
        "Robust accuracy is an upper bound: a stronger attack can only lower it.",
        f"One threat model: white-box, digital, {results.budget.norm.symbol}-bounded. Larger "
        "perturbations in one spot (patches), physical attacks and data poisoning are out of "
        "scope.",
        "One run per model: another seed or another processor trains another model. The intervals "
        "contain no variance of training.",
        "Test images come from the same source as training images; another clinic, camera or "
        "population may differ more than any attack here.",
        (anatomy if results.transformation_zone else "") + "Not a medical device.",
    ]


def blocks(results: Results) -> list[Block]:
    """A list."""
    return [Items(sentences(results))]


SECTION = Section("limitations", "Limitations", blocks)
