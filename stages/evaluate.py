"""Compute metrics, plots and the report from the tables of predictions; no model is loaded.

Run: python -m stages.evaluate

Reads data/processed, data/predictions, plots/training_*.csv, metrics/data.json and the figures of
preprocess. Writes metrics/ (evaluate.json, of which headlines.json repeats four numbers, and
diagnostics.json), plots/, data/report.html, data/model_card.md, data/checklist.html and .csv, and
data/leaderboards/.
"""

from typing import Any

from stages.core.errors import InputError
from stages.core.files import round_floats, write_bytes, write_csv, write_json
from stages.core.params import ResultParams
from stages.core.params_file import load_stage_params
from stages.core.paths import METRICS, MODEL_CARD, PLOTS, REPORT
from stages.core.processes import run_cli
from stages.report import checklist, leaderboards, model_card, page
from stages.report.checks import registry as diagnostics
from stages.report.comparison import overall_metrics
from stages.report.fonts import families_for
from stages.report.headlines import headlines
from stages.report.results import load_results
from stages.report.sections import summary
from stages.report.sections.registry import SECTIONS
from stages.report.style import STYLE
from stages.tracking.stage_logging import log_stage

Params = ResultParams  # what this stage reads of params.yaml: all that changes a result


def main() -> dict[str, Any]:
    """Run the stage in the current folder; returns what it writes to metrics/evaluate.json."""
    p = load_stage_params(Params)
    results = load_results(p)
    STYLE["font.family"] = families_for("".join(results.dataset.classes))
    for section in SECTIONS:
        results.plots |= section.compute_tables(results)
    metrics: dict[str, Any] = overall_metrics(results)
    for name, model in results.models.items():
        metrics[name] = {}
        for section in SECTIONS:
            metrics[name] |= section.metrics(results, model)
    results.metrics = round_floats(metrics)
    results.checks = round_floats(diagnostics.run_checks(results))
    figures: dict[str, bytes] = {}
    for section in SECTIONS:
        figures |= section.figures(results)
        results.figures |= section.charts(results)
    results.figures |= figures

    write_json(METRICS / "evaluate.json", results.metrics)
    write_json(METRICS / "headlines.json", headlines(results.metrics))
    write_json(METRICS / "diagnostics.json", results.checks)
    for name, table in results.plots.items():
        write_csv(PLOTS / f"{name}.csv", table)
    for name, png in figures.items():
        write_bytes(PLOTS / f"{name}.png", png)
    write_bytes(REPORT, page.render(results).encode())
    write_bytes(MODEL_CARD, model_card.render(results).encode())
    write_bytes(checklist.FILES["html"], checklist.render(results).encode())
    write_csv(checklist.FILES["csv"], checklist.table(results))
    for name in results.models:
        folder = leaderboards.FOLDER / name
        write_json(folder / "robustbench.json", leaderboards.robustbench(results, name))
        text = leaderboards.eval_results(results, name)
        write_bytes(folder / ".eval_results/robustness.yaml", text.encode())
    print(summary.terminal_summary(results))
    print(diagnostics.terminal_summary(results))
    print(summary.terminal_conclusion(results))
    log_stage("evaluate", p)
    # Last, so that everything is written and the expensive stages stay in the cache; DVC then
    # records no result.
    if p.evaluate.strict and (failed := diagnostics.failed_checks(results)):
        raise InputError(
            f"evaluate.strict: expected no diagnostic that says FAIL, got {', '.join(failed)}"
        )
    return results.metrics


if __name__ == "__main__":
    run_cli(main)
