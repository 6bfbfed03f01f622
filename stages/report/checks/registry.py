"""All diagnostics, by group; and how they are run and summed up."""

from collections.abc import Mapping
from typing import Any

from stages.report.checks import behavior, implementation, masking, strength, training
from stages.report.checks.check import FAIL, INCONCLUSIVE, PASS, Check
from stages.report.formatting import number, percent
from stages.report.results import Results

GROUPS: Mapping[str, tuple[Check, ...]] = {
    "Model and implementation": implementation.CHECKS,
    "Gradient masking": masking.CHECKS,
    "Attack strength": strength.CHECKS,
    "Training": training.CHECKS,
    "Model behavior": behavior.CHECKS,
}


def run_checks(results: Results) -> dict[str, Any]:
    """The content of metrics/diagnostics.json: model -> id -> verdict, value, threshold, n."""
    content: dict[str, Any] = {}
    for name, model in results.models.items():
        content[name] = {}
        for check in [check for checks in GROUPS.values() for check in checks]:
            if (result := check.result(results, model)) is not None:
                content[name][check.id] = result
    return content


def failed_checks(results: Results) -> list[str]:
    """``adv D27``: every FAIL."""
    return [
        f"{model} {id_}"
        for model, checks in results.checks.items()
        for id_, result in checks.items()
        if result["verdict"] == FAIL
    ]


def not_passed(checks: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one model that aren't PASS, in the order of their numbers."""
    order = sorted(checks, key=lambda id_: int(id_[1:]))
    return {id_: checks[id_] for id_ in order if checks[id_]["verdict"] != PASS}


def terminal_summary(results: Results) -> str:
    """How many are PASS, a line for each that isn't, and one for all that lack data."""
    needed = {check.id: check.needed for checks in GROUPS.values() for check in checks}
    lines = []
    for model, checks in results.checks.items():
        others, undecided = not_passed(checks), []
        count = len(checks) - len(others)
        lines.append(f"diagnostics of {model}: {count} of {len(checks)} PASS")
        for id_, result in others.items():
            n, power = result["n"], ""
            if "power" in result:
                power = f"power {percent(result['power'])}"
            if result["verdict"] == INCONCLUSIVE:
                reason = f"n = {n} of {needed[id_]}" if needed[id_] > n else power
                undecided.append(f"{id_} ({reason})" if reason else id_)
                continue
            value = f" {number(result['value'], '.3g')}" if "value" in result else ""
            n = f"{n}, {power}" if power else n
            lines.append(f"  [{result['verdict']}] {id_} {result['name']}:{value} (n = {n})")
        if undecided:
            lines.append(f"  [{INCONCLUSIVE}] {', '.join(undecided)}")
    return "\n".join(lines)
