"""A training of seconds, which several test files share."""

import dataclasses
from pathlib import Path

import torch

from stages.core.checkpoints import Checkpoint
from stages.core.params import Augment, TrainAdv
from stages.models.batches import DatasetSplit
from stages.training.loop import Result, TrainingMethod, fit
from stages.training.validation import Validation
from tests.conftest import tiny_classifier, toy_store

EPS = 8 / 255
CLEAN = TrainingMethod()
STILL = Augment(flip=False, rotate90=False, shift=0.0, zoom=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
BUSY = Augment(flip=True, rotate90=True, shift=0.2, zoom=0.2, brightness=0.3, contrast=0.3, saturation=0.3)
P = TrainAdv(
    epochs=3,
    batch_size=16,
    optimizer="sgd",
    lr=0.02,
    backbone_lr=1.0,
    freeze="none",
    warmup=0.1,
    weight_decay=5e-4,
    label_smoothing=0.1,
    balance="loss",
    clip_norm=1.0,
    ema=0.0,
    patience=0,
    val_images=8,
    val_steps=2,
    augment=BUSY,
    method="nfgsm",
    alpha_rel=1.0,
    steps=1,
    beta=6.0,
    awp=0.0,
    eps_ramp=0.5,
    clean_share=0.0,
)


def checkpoint_in(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint("test", "key")
    checkpoint.folder, checkpoint.file = Path(folder), Path(folder) / "last.pt"
    checkpoint.folder.mkdir(exist_ok=True)
    return checkpoint


def train(fabric, folder, p=P, method=CLEAN, on_epoch=lambda row: None, seed=0, store=None, **validation) -> Result:
    store = store or toy_store(size=16)
    torch.manual_seed(seed)
    model = tiny_classifier(store.classes)
    judged = Validation(
        DatasetSplit.of(store, "val"),
        "linf",
        EPS,
        p.val_steps,
        p.val_images,
        score=lambda row: (row["val_clean_accuracy"], -row["val_loss"]),
    )
    return fit(
        fabric,
        model,
        DatasetSplit.of(store, "train"),
        dataclasses.replace(judged, **validation),
        p,
        seed=seed,
        checkpoint=checkpoint_in(folder),
        method=method,
        on_epoch=on_epoch,
    )


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
