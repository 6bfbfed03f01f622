"""Where the stages read and write, relative to the project's root, as in dvc.yaml."""

from pathlib import Path

MODELS = (
    "clean",
    "adv",
)  # after standard training, and after adversarial fine-tuning of that model
PROCESSED = Path("data/processed")
PREDICTIONS = Path("data/predictions")
REPORT = Path("data/report.html")
MODEL_CARD = Path("data/model_card.md")
METRICS = Path("metrics")
PLOTS = Path("plots")


def weights_path(model: str) -> Path:
    """The file of one of MODELS."""
    return Path(f"data/models/{model}.safetensors")


def history_path(model: str) -> Path:
    """The training curve of one of MODELS."""
    return PLOTS / f"training_{model}.csv"
