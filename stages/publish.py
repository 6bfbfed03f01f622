"""Publish a trained model in MLflow's registry, ready to be served.  Run: python -m stages.publish <clean|adv>

Reads data/models/<model>.safetensors, metrics/ and dvc.lock. Registers a version of the model ``colposcopy-classifier`` and
gives it the alias ``champion``; the same model again only moves the alias. No stage of the pipeline.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from stages.core.errors import run
from stages.serving.card import ModelCard, read_card, weights_path
from stages.tracking.mlflow_runs import MlflowSession, open_session

NAME, ALIAS = "colposcopy-classifier", "champion"
SERVED = "stages/serving/pyfunc_model.py"


def main(model: str) -> str:
    """Publish; returns the version."""
    card, session = read_card(model), open_session()
    tags = {"md5": card.md5, "model": model, "card": card.to_json()}
    known = [v for v in session.client.search_model_versions(f"name = '{NAME}'") if v.tags.get("card") == tags["card"]]
    version = known[0].version if known else register(session, card, tags)
    session.client.set_registered_model_alias(NAME, ALIAS, version)
    print(f"models:/{NAME}@{ALIAS} is version {version}, {model}. {card.notice()}")
    return str(version)


def register(session: MlflowSession, card: ModelCard, tags: dict[str, str]) -> str:
    """A new version, logged by a run of its own below the pipeline's; returns its number."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    grey = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(grey, "PNG")
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=session.begin_publication(card.model)):
        (file := Path(folder) / "card.json").write_text(card.to_json(), encoding="utf-8")
        published = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=SERVED,
            artifacts={"weights": str(weights_path(card.model)), "card": str(file)},
            code_paths=["stages"],
            pip_requirements="requirements.txt",
            signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")])),
            input_example=pd.DataFrame({"image": [base64.b64encode(grey.getvalue()).decode()]}),
            registered_model_name=NAME,
            tags=tags,
        )
    version = published.registered_model_version
    for key, value in tags.items():
        session.client.set_model_version_tag(NAME, version, key, value)
    session.client.update_model_version(NAME, version, description=card.notice())
    return version


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("clean", "adv"):
        sys.exit(f"error: expected the model to publish, clean or adv, got {' '.join(sys.argv[1:]) or 'nothing'}")
    run(lambda: main(sys.argv[1]))
