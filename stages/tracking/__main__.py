"""Log to MLflow what could not be logged when it was computed.

Run: python -m stages.tracking
"""

import json
import subprocess
import sys
from typing import Any

from stages.core.params_file import flatten, load_params
from stages.core.processes import run_cli
from stages.tracking import stage_outputs
from stages.tracking.stage_logging import current_session


def main() -> int:
    """Log what is up to date and not in MLflow yet: stages, and the run of a pipeline that DVC took wholly from its cache.

    Returns 1 if some are not up to date.
    """
    outdated, session, params = _outdated_stages(), current_session(), flatten(load_params())
    for stage in stage_outputs.stage_names():
        if stage in outdated:
            print(f"{stage}: skipped: outputs are out of date (run `dvc repro`)")
        elif session.find(
            {
                "stage": stage,
                "content": stage_outputs.digest_files(stage_outputs.output_files(stage)),
            }
        ):
            print(f"{stage}: logged already")
        else:
            sections = tuple(f"{key}." for key in stage_outputs.dvc_entries(stage, "params"))
            # Where and with what it ran isn't in the files, so no environment.
            session.log_stage(
                stage, {k: v for k, v in params.items() if f"{k}.".startswith(sections)}, {}
            )
            print(f"{stage}: logged")
    if not outdated and session.log_pipeline():
        print("the pipeline: logged")
    return bool(outdated)


def _outdated_stages() -> dict[str, Any]:
    """Stages whose outputs DVC calls out of date."""
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if status.returncode:
        raise SystemExit(f"`dvc status` failed: {status.stderr.strip()}")
    return json.loads(status.stdout)


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
