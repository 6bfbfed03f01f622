"""Publish a trained model in MLflow's registry, ready to be served.

Run: python -m stages.publish <clean|adv>

Reads data/models/<model>.safetensors, metrics/ and dvc.lock. Registers a version of the model ``colposcopy-classifier`` and
gives it the alias ``champion``; the same model and code again only move the alias. No stage of the pipeline.
"""

import argparse
import base64
import hashlib
import io
import os
import tempfile
from pathlib import Path

from PIL import Image

from stages.core.paths import MODELS, weights_path
from stages.core.processes import run_cli
from stages.serving.card import ModelCard, read_card
from stages.tracking.connection import open_session
from stages.tracking.mlflow_runs import MlflowSession

NAME, ALIAS = "colposcopy-classifier", "champion"
PYFUNC_MODEL_FILE = "stages/serving/pyfunc_model.py"


def main(model: str) -> str:
    """Publish; returns the version."""
    card, session = read_card(model), open_session()
    code = hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted(Path("stages").rglob("*.py")))
    ).hexdigest()
    tags = {"md5": card.md5, "model": model, "card": card.to_json(), "code": code}
    versions = session.client.search_model_versions(f"name = '{NAME}'")
    known = [v for v in versions if all(v.tags.get(key) == tags[key] for key in ("card", "code"))]
    version = known[0].version if known else register(session, card, tags)
    session.client.set_registered_model_alias(NAME, ALIAS, version)
    print(f"models:/{NAME}@{ALIAS} is version {version}, {model}. {card.disclaimer()}")
    return str(version)


def register(session: MlflowSession, card: ModelCard, tags: dict[str, str]) -> str:
    """A new version, logged by a run of its own below the pipeline's; returns its number."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    example = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(example, "PNG")
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_id=session.start_publication_run(card.model)),
    ):
        file = Path(folder) / "card.json"
        file.write_text(card.to_json(), encoding="utf-8")
        published = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=PYFUNC_MODEL_FILE,
            artifacts={"weights": str(weights_path(card.model)), "card": str(file)},
            code_paths=["stages"],
            pip_requirements="requirements.txt",
            signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")])),
            input_example=pd.DataFrame({"image": [base64.b64encode(example.getvalue()).decode()]}),
            registered_model_name=NAME,
            tags=tags,
        )
    version = published.registered_model_version
    for key, value in tags.items():
        session.client.set_model_version_tag(NAME, version, key, value)
    session.client.update_model_version(NAME, version, description=card.disclaimer())
    return version


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to publish")
    run_cli(main, **vars(parser.parse_args()))
