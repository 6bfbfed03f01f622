"""The diagnostics: is the robust accuracy believable?"""

from typing import Any

from markupsafe import Markup

from stages.report.blocks import Block, Cell, Details, Items, Table, Text, head
from stages.report.checks.check import FAIL, WARN
from stages.report.checks.registry import GROUPS, not_passed
from stages.report.formatting import number, percent
from stages.report.results import Results
from stages.report.section import Section

STYLES = {FAIL: "fail", WARN: "warning"}


def sentences(results: Results) -> list[str]:
    """One per model, ``Standard training: 22 of 25 passed; D7 WARN, D25 INFO.``."""
    texts = []
    for model in results.models.values():
        checks = results.checks[model.name]
        others = not_passed(checks)
        listing = ", ".join(f"{id_} {result['verdict']}" for id_, result in others.items())
        text = f"{model.label}: {len(checks) - len(others)} of {len(checks)} passed"
        texts.append(text + (f"; {listing}." if listing else "."))
    return texts


def remedies(results: Results) -> list[str]:
    """What to do about each check that is WARN, FAIL or INCONCLUSIVE."""
    texts = []
    for check in [check for checks in GROUPS.values() for check in checks]:
        verdicts = [checks.get(check.id, {}).get("verdict") for checks in results.checks.values()]
        if {FAIL, WARN, "INCONCLUSIVE"} & set(verdicts):
            texts.append(f"{check.id}: {check.reason} {check.remedy}")
    return texts


def _cell(result: dict[str, Any] | None) -> Markup:
    if result is None:
        return Markup("<small>n/a</small>")
    value = f"{number(result['value'], '.2g')}, " if "value" in result else ""
    power = f", power {percent(result['power'])}" if "power" in result else ""
    return Markup('<span class="{}">{}</span><br><small>{}n&nbsp;=&nbsp;{}{}</small>').format(
        STYLES.get(result["verdict"], ""), result["verdict"], value, result["n"], power
    )


def check_table(results: Results) -> Table:
    """All checks, by group."""
    labels = [model.label for model in results.models.values()]
    body = []
    for group, checks in GROUPS.items():
        part = {"class": "part", "colspan": 1 + len(labels)}
        body.append([Cell(group, "th", part)])
        for check in checks:
            limits = Markup("<br><small>{}</small>").format(check.threshold)
            name = Markup("{} {}").format(check.id, check.title)
            measured = Cell(name + (limits if check.threshold else ""), "th", {"scope": "row"})
            found = [results.checks[model].get(check.id) for model in results.models]
            body.append([measured, *(Cell(_cell(result)) for result in found)])
    title = "Diagnostics. Data: metrics/diagnostics.json."
    return Table(title, head("check", *labels), body, "long")


def blocks(results: Results) -> list[Block]:
    """What they are, how many passed, what to do about the others, and all of them."""
    advice = remedies(results)
    details = [Details("What to do about the others", [Items(advice)])] if advice else []
    return [
        Text(
            "Sanity checks for gradient masking and weak attacks (Carlini et al. 2019; Pintor et "
            "al. 2022). FAIL: do not trust the robust accuracy until resolved. WARN: investigate. "
            "INFO: a property of the model, not a fault of the attacks. INCONCLUSIVE: not enough "
            "data. Values are fractions unless the title says otherwise, lower is better but for "
            "D27; n counts test images, in D20 and D21 epochs. Power is the share of the faults "
            "among them that would have been seen, where that is known: D9's is the share of the "
            "images known to fall that Square finds."
        ),
        Items(sentences(results)),
        *details,
        Details("All diagnostics", [check_table(results)]),
        Text(
            "Two things hold by construction, and so are no checks: accuracy under PGD never "
            "increases with ε, because what succeeds within a smaller ε is kept; and the worst "
            "case contains attacks unlike the training attack, with other losses, other models "
            "and without gradients."
        ),
    ]


SECTION = Section("diagnostics", "Diagnostics", blocks)
