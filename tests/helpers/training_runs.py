"""A training of seconds, which several test files share."""

from pathlib import Path

import torch

from stages.core.checkpoints import Checkpoint
from stages.core.norms import Budget
from stages.core.params import AugmentParams, TrainAdvParams
from stages.models.batches import DatasetSplit
from stages.training.epoch import StandardTraining, Training
from stages.training.loop import Progress, fit
from stages.training.validation import StandardValidation
from tests.helpers.datasets import toy_dataset
from tests.helpers.models import tiny_classifier
from tests.helpers.params import params


def augmentation(flips: bool, amount: float) -> AugmentParams:
    """All kinds of augmentation by the same amount."""
    amounts = dict.fromkeys(AugmentParams.model_fields, amount)
    return AugmentParams(**amounts | {"flip": flips, "rotate90": flips})


EPS = 8 / 255
NO_AUGMENTATION, ALL_AUGMENTATIONS = augmentation(False, 0.0), augmentation(True, 0.2)
PARAMS = params().train_adv.model_copy(
    update={
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.02,
        "warmup": 0.1,
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "ema": 0.0,
        "eps_ramp": 0.5,
        "val_images": 8,
        "val_steps": 2,
        "augment": ALL_AUGMENTATIONS,
    }
)


def with_params(**changes) -> TrainAdvParams:
    """PARAMS with changes."""
    return PARAMS.model_copy(update=changes)


def checkpoint_in(folder: Path) -> Checkpoint:
    """A checkpoint whose state lies in a folder."""
    checkpoint = Checkpoint("test", "key")
    checkpoint.folder = Path(folder)
    checkpoint.folder.mkdir(exist_ok=True)
    return checkpoint


def train(
    fabric,
    folder,
    p=PARAMS,
    method=None,
    on_epoch=lambda row: None,
    seed=0,
    dataset=None,
    validation=StandardValidation,
    eps=EPS,
) -> Progress:
    """A run whose checkpoint lies in ``folder``; standard training if no method is given."""
    dataset = dataset or toy_dataset(size=16)
    torch.manual_seed(seed)
    model, images = tiny_classifier(dataset.classes), DatasetSplit.from_dataset(dataset, "train")
    training = Training(model, images, method or StandardTraining(p), p, seed)
    val = DatasetSplit.from_dataset(dataset, "val")
    selection = validation(val, Budget.of("linf", eps), p.val_steps, p.val_images)
    return fit(fabric, training, selection, checkpoint_in(folder), on_epoch)


def same_tensors(a, b) -> bool:
    """Whether two state dicts are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
