"""Mean and range over seeds of the main metrics, next to the confidence interval over patients.

Run: dvc exp show --json | python -m tools.seeds [--csv FILE]

The metrics are those of metrics/evaluate.json in the commit of each run. `make seeds` runs the
experiments. Runs belong together that start from the same commit and differ
in nothing but the seed: it changes the split, the initial weights, the order of the images and
every noise.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.errors import InputError
from stages.core.files import write_csv
from stages.core.paths import METRICS
from stages.core.processes import run_cli
from stages.report.formatting import MODEL_LABELS, metric
from stages.report.sections.summary import MAIN_METRICS

LABELS = {**MODEL_LABELS, "difference": "Difference"}
EVALUATION = METRICS / "evaluate.json"
RUNS = ["commit", "params"]  # what runs that belong together have in common
RESULT = [*RUNS, "model", "metric"]
COLUMNS = ["runs", "commit", "model", "metric", "seeds"]
COLUMNS += ["mean", "least", "most", "first_seed", "low", "high"]


def read_evaluation(revision: str) -> dict[str, Any]:
    """metrics/evaluate.json of a commit."""
    command = ["git", "show", f"{revision}:{EVALUATION.as_posix()}"]
    return json.loads(subprocess.check_output(command))  # noqa: S603


def read_runs(commits: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each finished run and result, from the output of ``dvc exp show --json``."""
    rows = []
    for commit in commits:
        experiments = [run for group in commit.get("experiments") or () for run in group["revs"]]
        for run in (commit, *experiments):
            data = run.get("data") or {}
            params = data.get("params", {}).get("params.yaml", {}).get("data")
            is_finished = data.get("metrics", {}).get("metrics/headlines.json", {}).get("data")
            if params and is_finished and run["rev"] != "workspace":
                metrics = read_evaluation(run["rev"])
                others = {k: v for k, v in params.items() if k not in ("seed", "runtime")}
                case = (commit["rev"], json.dumps(others, sort_keys=True))
                for model in LABELS:
                    values = metrics.get(model, {})
                    for name, *_ in MAIN_METRICS:
                        ends = (values.get(f"{name}_low"), values.get(f"{name}_high"))
                        rows.append((*case, model, name, params["seed"], values.get(name), *ends))
    table = pd.DataFrame(rows, columns=[*RESULT, "seed", "value", "low", "high"])
    return table.drop_duplicates([*RESULT, "seed"])  # an experiment may repeat its commit


def seed_table(runs: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS: a row for each set of runs with several seeds, and result that all of them have.

    ``runs`` numbers the sets; the interval is that of the run with the first seed.
    """
    runs = runs.sort_values("seed", kind="stable")
    results = runs.groupby(RESULT, sort=False)
    table = results.first(skipna=False).rename(columns={"seed": "first_seed"})
    table["seeds"] = results["seed"].agg(lambda seeds: " ".join(map(str, seeds)))
    values = {"mean": "mean", "least": "min", "most": "max"}
    table = table.join(results["value"].agg(**values))
    complete = results["value"].count() == results.size()
    table = table[complete & (results.size() > 1)].reset_index()
    table["runs"] = table.groupby(RUNS, sort=False).ngroup() + 1
    return table[COLUMNS]


def summary(table: pd.DataFrame) -> str:
    """The table as text, a block for each set of runs."""
    names = {name: (label, unit) for name, label, unit in MAIN_METRICS}
    lines = []
    for (_, commit, seeds, first), rows in table.groupby(["runs", "commit", "seeds", "first_seed"]):
        lines.append(
            f"Seeds {seeds.replace(' ', ', ')} of {commit[:7]}: mean (least–most); in brackets the "
            f"confidence interval of seed {first}"
        )
        for row in rows.to_dict("records"):
            label, unit = names[row["metric"]]
            values = {key: row[key] for key in ("mean", "least", "most")}
            if pd.notna(row["low"]):
                values |= {"mean_low": row["low"], "mean_high": row["high"]}
            mean, least, most = (
                metric(values, key, unit=unit, signed=row["model"] == "difference")
                for key in ("mean", "least", "most")
            )
            mean, bracket, interval = mean.partition(" [")
            name = f"{LABELS[row['model']]}, {label}"
            lines.append(f"  {name:<76} {mean} ({least}–{most}){bracket}{interval}")
    return "\n".join(lines)


def main(csv: Path | None) -> pd.DataFrame:
    """Print the summary of the experiments on standard input; returns the table."""
    try:
        commits = json.load(sys.stdin)
    except ValueError as error:
        raise InputError(
            f"standard input: expected the output of dvc exp show --json, got: {error}"
        ) from error
    table = seed_table(read_runs(commits))
    if table.empty:
        raise InputError(
            "standard input: expected runs of one commit that differ in nothing but their seed, "
            "got none: run make seeds first"
        )
    print(summary(table))
    if csv:
        write_csv(csv, table)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="write the table to this file, too")
    run_cli(main, **vars(parser.parse_args()))
