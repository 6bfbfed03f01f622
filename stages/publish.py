"""Publish a trained model in MLflow's registry, ready to be served.

Run: python -m stages.publish <clean|adv>

Reads data/models/<model>.safetensors, metrics/ and dvc.lock. Registers a version of the model
``colposcopy-classifier`` and gives it the alias ``champion``; the same model and code again only
move the alias. No stage of the pipeline.
"""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

from stages.core.code import code_digest
from stages.core.paths import MODELS, weights_path
from stages.core.processes import run_cli
from stages.serving.evaluated_model import EvaluatedModel, read_evaluated_model
from stages.tracking.connection import mlflow, mlflow_errors_in_one_line, open_mlflow
from stages.tracking.environment import code_tags
from stages.tracking.mlflow_runs import find
from stages.tracking.stage_outputs import LAST_STAGE, content_digest

NAME, ALIAS = "colposcopy-classifier", "champion"
PYFUNC_MODEL_FILE = "stages/serving/pyfunc_model.py"


@mlflow_errors_in_one_line()
def main(model: str) -> str:
    """Publish; returns the version."""
    evaluated = read_evaluated_model(model)
    open_mlflow()
    client = mlflow.MlflowClient()
    tags = {
        "model": model,
        "md5": evaluated.md5,
        "evaluation": evaluated.to_json(),
        "code": code_digest(),
    }
    for known in client.search_model_versions(f"name = '{NAME}'"):
        if tags.items() <= known.tags.items():
            version = known.version
            break
    else:
        version = register(evaluated, tags)
    client.set_registered_model_alias(NAME, ALIAS, version)
    print(f"models:/{NAME}@{ALIAS} is version {version}, {model}. {evaluated.disclaimer()}")
    return str(version)


def register(evaluated: EvaluatedModel, tags: dict[str, str]) -> str:
    """A new version, logged by a run of its own below that of its configuration; its number."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    configurations = find({"results": content_digest(LAST_STAGE)})
    run = f"publish@{evaluated.model}"
    example = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(example, "PNG")
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(
            run_name=run,
            parent_run_id=configurations[0].info.run_id if configurations else None,
            tags={**code_tags("stages/publish.py"), "stage": run},
        ),
    ):
        file = Path(folder) / "evaluation.json"
        file.write_text(evaluated.to_json(), encoding="utf-8")
        published = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=PYFUNC_MODEL_FILE,
            artifacts={"weights": str(weights_path(evaluated.model)), "evaluation": str(file)},
            code_paths=["stages"],
            pip_requirements="requirements.txt",
            signature=ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")])),
            input_example=pd.DataFrame({"image": [base64.b64encode(example.getvalue()).decode()]}),
            registered_model_name=NAME,
            tags=tags,
        )
    client, version = mlflow.MlflowClient(), published.registered_model_version
    for key, value in tags.items():
        client.set_model_version_tag(NAME, version, key, value)
    client.update_model_version(NAME, version, description=evaluated.disclaimer())
    return version


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS, help="the model to publish")
    run_cli(main, **vars(parser.parse_args()))
