"""Log to MLflow what is up to date and not there yet: stages, and a run that DVC took from cache.

Run: python -m stages.tracking
"""

import json
import subprocess
import sys
from collections.abc import Container

from stages.core.processes import run_cli
from stages.tracking import mlflow_runs, stage_outputs
from stages.tracking.configuration import written_params
from stages.tracking.connection import mlflow_errors_in_one_line


@mlflow_errors_in_one_line()
def main() -> int:
    """Log it; returns 1 if some stages are not up to date."""
    outdated, params = _outdated_stages(), written_params()
    for stage in stage_outputs.stage_names():
        if stage in outdated:
            print(f"{stage}: skipped: outputs are out of date (run `dvc repro`)")
        elif _is_logged(stage):
            print(f"{stage}: logged already")
        else:
            sections = tuple(f"{key}." for key in stage_outputs.entries(stage, "params"))
            read = [key for key in params if f"{key}.".startswith(sections)]
            mlflow_runs.log_stage(stage, read, {})  # where it ran is not in the files
            print(f"{stage}: logged")
    if not outdated and mlflow_runs.log_pipeline():
        print("the pipeline: logged")
    return 1 if outdated else 0


def _is_logged(stage: str) -> bool:
    """Whether a finished run has the present files of a stage."""
    runs = mlflow_runs.find({"stage": stage, "content": stage_outputs.content_digest(stage)})
    return any(run.info.status == "FINISHED" for run in runs)


def _outdated_stages() -> Container[str]:
    """The stages whose outputs DVC calls out of date."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    status = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if status.returncode:
        raise SystemExit(f"`dvc status` failed: {status.stderr.strip()}")
    return json.loads(status.stdout)


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
