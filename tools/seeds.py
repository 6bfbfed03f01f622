"""Mean and range over seeds of the main metrics, next to the confidence interval over patients.

Run: dvc exp show --json | python -m stages.evaluation.seeds [--csv FILE]

``make seeds`` runs the experiments. Runs that differ in nothing but the seed belong together; a seed changes the split, the
initial weights, the order of the images and every noise.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.errors import InputError
from stages.core.files import write_csv
from stages.core.processes import run_cli
from stages.evaluation.formatting import MODEL_LABELS, metric
from stages.evaluation.summary import MAIN_METRICS

DIFFERENCE = "difference"
COLUMNS = ["runs", "model", "metric", "seeds", "mean", "least", "most", "first_seed", "low", "high"]


def finished_runs(
    commits: list[Mapping[str, Any]],
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(params, metrics) of every commit and experiment that has both, from the output of ``dvc exp show --json``."""
    for commit in commits:
        entries = [
            commit,
            *(
                revision
                for experiment in commit.get("experiments") or []
                for revision in experiment["revs"]
            ),
        ]
        for entry in entries:
            data = entry.get("data") or {}
            params = data.get("params", {}).get("params.yaml", {}).get("data")
            metrics = data.get("metrics", {}).get("metrics/evaluate.json", {}).get("data")
            if params and metrics:
                yield params, metrics


def seed_table(runs: Iterator[tuple[dict[str, Any], dict[str, Any]]]) -> pd.DataFrame:
    """A row for each set of runs with several seeds, model and metric: COLUMNS.

    ``runs`` numbers the sets, ``low`` and ``high`` are the confidence interval over patients of the run with the first seed.
    """
    by_params: dict[str, dict[int, dict[str, Any]]] = {}
    for params, metrics in runs:
        shared = json.dumps(
            {key: value for key, value in params.items() if key not in ("seed", "runtime")},
            sort_keys=True,
        )
        by_params.setdefault(shared, {})[params["seed"]] = metrics
    rows = []
    repeated = [by_seed for by_seed in by_params.values() if len(by_seed) > 1]
    for number, by_seed in enumerate(repeated, 1):
        first = min(by_seed)
        for model in (*MODEL_LABELS, DIFFERENCE):
            for key, *_ in MAIN_METRICS:
                values = [
                    metrics[model][key]
                    for metrics in by_seed.values()
                    if key in metrics.get(model, {})
                ]
                if len(values) == len(by_seed):
                    interval = [
                        by_seed[first][model].get(f"{key}_{end}") for end in ("low", "high")
                    ]
                    seeds = " ".join(map(str, sorted(by_seed)))
                    mean = sum(values) / len(values)
                    rows.append(
                        (
                            number,
                            model,
                            key,
                            seeds,
                            mean,
                            min(values),
                            max(values),
                            first,
                            *interval,
                        )
                    )
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(table: pd.DataFrame) -> str:
    """The table as text, a block for each set of runs."""
    labels, units = (
        {key: label for key, label, _ in MAIN_METRICS},
        {key: unit for key, _, unit in MAIN_METRICS},
    )
    lines = []
    for _, rows in table.groupby("runs"):
        seeds, first = rows["seeds"].iloc[0].replace(" ", ", "), rows["first_seed"].iloc[0]
        lines.append(
            f"Seeds {seeds}: mean (least–most); in brackets the confidence interval of seed {first}"
        )
        for row in rows.to_dict("records"):
            name, unit = row["metric"], units[row["metric"]]
            options: dict[str, Any] = {"unit": unit, "signed": row["model"] == DIFFERENCE}
            least, most = (metric({name: row[end]}, name, **options) for end in ("least", "most"))
            mean = {name: row["mean"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
            value, _, interval = metric(
                {k: v for k, v in mean.items() if pd.notna(v)}, name, **options
            ).partition(" [")
            label = f"{MODEL_LABELS.get(row['model'], 'Difference')}, {labels[name]}"
            lines.append(
                f"  {label:<76} {value} ({least}–{most})" + (f" [{interval}" if interval else "")
            )
    return "\n".join(lines)


def main(csv: Path | None) -> pd.DataFrame:
    """Print the summary of the experiments on standard input; returns the table."""
    try:
        commits = json.load(sys.stdin)
    except ValueError as error:
        raise InputError(
            f"standard input: expected the output of dvc exp show --json, got: {error}"
        ) from error
    table = seed_table(finished_runs(commits))
    if table.empty:
        raise InputError(
            "standard input: expected runs that differ in nothing but their seed, got none: run make seeds first"
        )
    print(summary(table))
    if csv:
        write_csv(csv, table)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="write the table to this file, too")
    run_cli(main, **vars(parser.parse_args()))
