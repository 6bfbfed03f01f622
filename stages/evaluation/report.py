"""The report: one self-contained HTML page. It holds no script and loads nothing; the template escapes every text."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.budgets import NORM_SYMBOLS, format_budget, format_eps
from stages.core.checks import GROUPS
from stages.core.dataset import is_transformation_zone
from stages.evaluation import report_tables, summary
from stages.evaluation.conformal import ALPHA
from stages.evaluation.formatting import MODEL_LABELS, class_label, listed, metric, percent


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        params: all of params.yaml but ``runtime``, flat.
        metrics: metrics/evaluate.json.
        checks: metrics/diagnostics.json.
        data: metrics/data.json.
        counts: images per class (rows) and split (columns).
        rejected: path, reason.
        tables: the tables in plots/, by name.
        training: model -> training curve.
        attacks: the distinct attack, eps, steps and n that were run, with the models.
        steps: attack -> gradient steps of one run of it at the main eps.
        models: model -> model.json of attack_eval.
        ensembles: model -> ensemble.json of attack_eval.
        figures: name -> PNG.
        versions: library -> version.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checks: Mapping[str, Mapping[str, Mapping[str, Any]]]
    data: Mapping[str, Any]
    counts: pd.DataFrame
    rejected: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    training: Mapping[str, pd.DataFrame]
    attacks: pd.DataFrame
    steps: Mapping[str, int]
    models: Mapping[str, Mapping[str, Any]]
    ensembles: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, bytes]
    versions: Mapping[str, str]

    @property
    def norm(self) -> str:
        """Of the threat model."""
        return self.params["attack.norm"]

    @property
    def level(self) -> str:
        """Confidence level, ``95%``."""
        return f"{100 * self.params['evaluate.confidence']:g}%"

    @property
    def evaluated(self) -> list[str]:
        """The models that have metrics, clean first."""
        return summary.evaluated_models(self.metrics)


def render(report: Report) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "class_label": class_label,
        "budget": lambda eps: format_budget(eps, report.norm),
        "eps": lambda eps: format_eps(eps, report.norm),
        "short": lambda value: f"{value:.2g}",
        "listed": listed,
    }
    tables = report.tables
    images = {
        name: "data:image/png;base64," + base64.b64encode(png).decode()
        for name, png in report.figures.items()
    }
    return environment.get_template("report.html.jinja").render(
        r=report,
        labels=MODEL_LABELS,
        norm_symbol=NORM_SYMBOLS[report.norm],
        transformation_zone=is_transformation_zone(report.counts.index),
        sentences=summary.summary_sentences(report.metrics),
        caveats=summary.caveats(report.metrics, tables, report.counts, report.data, report.params),
        main_metrics=summary.main_metrics_table(report.metrics),
        attack_rows=report_tables.attack_rows(report.metrics, tables["robustness"], report.steps),
        cost_rows=report_tables.cost_rows(report.metrics, report.steps, report.evaluated),
        universal_sentences=summary.universal_sentences(report.metrics),
        second_sentences=summary.second_norm_sentences(report.metrics),
        second_budget=summary.second_budget(report.params),
        not_run=summary.not_run(report.params),
        attacked_rows=report_tables.attacked_corruption_rows(
            tables["attacked_corruptions"], report.evaluated
        ),
        per_class=report_tables.per_class_rows(
            tables["per_class"], list(report.counts.index), report.evaluated
        ),
        conformal_rows=report_tables.conformal_rows(
            tables["conformal"], report.steps, report.evaluated
        ),
        conformal_sentences=summary.conformal_sentences(report.metrics),
        coverage=1 - ALPHA,
        limitations=summary.limitations(
            report.norm, transformation_zone=is_transformation_zone(report.counts.index)
        ),
        confusions=report_tables.confusion_matrices(tables["confusion"]),
        corruption_rows=report_tables.corruption_rows(tables["corruptions"], report.evaluated),
        check_groups=report_tables.check_groups(report.checks, GROUPS, report.evaluated),
        check_summary=summary.check_sentences(report.checks),
        min_eps_sentences=summary.min_eps_sentences(report.metrics, report.norm),
        training_sentences=summary.training_sentences(report.training),
        ensemble_sentences=summary.ensemble_sentences(report.ensembles),
        curve=summary.curve_sentence(tables["robustness"], report.evaluated, report.norm),
        method=summary.method_name(report.params),
        clusters=summary.cluster_name(report.data),
        parameters=report_tables.parameter_rows(report.params),
        images=images,
        metric=metric,
    )
