"""Log to MLflow what could not be logged when it was computed.  Run: python -m stages.tracking"""

import json
import subprocess
import sys
from typing import Any

from stages.core.params import flatten, load_all
from stages.tracking import stage_outputs
from stages.tracking.stage_logging import current_session


def main() -> int:
    """Log what is up to date and not in MLflow yet: stages, and the run of a pipeline that DVC took wholly from its cache.

    Returns 1 if some are not up to date.
    """
    stale, session, params = _stale(), current_session(), flatten(load_all())
    for stage in stage_outputs.stage_names():
        if stage in stale:
            print(f"{stage}: not logged: `dvc status` calls its files out of date")
        elif session.find({"stage": stage, "content": stage_outputs.content_of(stage_outputs.written(stage))}):
            print(f"{stage}: logged already")
        else:
            sections = tuple(f"{key}." for key in stage_outputs.entries(stage, "params"))
            # Where and with what it ran isn't in the files, so no environment.
            session.log_stage(stage, {k: v for k, v in params.items() if f"{k}.".startswith(sections)}, {})
            print(f"{stage}: logged")
    if not stale and session.log_pipeline():
        print("the pipeline: logged")
    return bool(stale)


def _stale() -> dict[str, Any]:
    """Stages whose files don't belong to the present code, data and params, for DVC."""
    asked = subprocess.run([sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit(f"expected an answer of `dvc status`, got an error: {asked.stderr.strip()}")
    return json.loads(asked.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
