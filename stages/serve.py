"""Serve a published model on 127.0.0.1: /invocations, /ping, /health, /version as in MLflow.

Run: python -m stages.serve [model URI] [--port 5001]

Loads the model from MLflow's registry with the code that it was published with. No stage of the
pipeline.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.processes import run_cli
from stages.serving.request_guard import RequestGuard
from stages.tracking.connection import mlflow, tracking_uri

CHAMPION = "models:/colposcopy-classifier@champion"  # as stages.publish names it
HOST = "127.0.0.1"  # no authentication: reachable from this machine only
MAX_CONNECTIONS = 32  # each may hold a request of MAX_BODY; further ones get status 503


def main(model: str, port: int) -> None:
    """Serve until interrupted."""
    import uvicorn
    from mlflow.pyfunc import scoring_server

    app = RequestGuard(scoring_server.init(load_published(model)))
    uvicorn.run(app, host=HOST, port=port, limit_concurrency=MAX_CONNECTIONS + 1)


def load_published(uri: str) -> Any:
    """The model as mlflow.pyfunc.PyFuncModel.

    Raises:
        InputError: when there is none.
    """
    mlflow.set_tracking_uri(tracking_uri(Path.cwd()))
    # The model brings its own `stages`: those of this folder may have changed since.
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]
    try:
        return mlflow.pyfunc.load_model(uri)
    except mlflow.MlflowException as error:
        expected = "expected a model that `python -m stages.publish` published"
        raise InputError(f"{uri}: {expected}, got: {error.message}") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "model",
        nargs="?",
        default=CHAMPION,
        help="MLflow's URI of the model (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=5001)
    run_cli(main, **vars(parser.parse_args()))
