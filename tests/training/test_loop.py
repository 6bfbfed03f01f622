"""The training loop: resuming, repeatability, selection of the best epoch, and when it stops."""

import pandas as pd
import pytest
import torch

from stages.core.norms import Budget
from stages.training.epoch import StandardTraining
from stages.training.loop import write_history
from stages.training.methods import make_training_method
from stages.training.validation import RobustValidation, StandardValidation
from tests.helpers.datasets import toy_dataset
from tests.helpers.training_runs import (
    EPS,
    NO_AUGMENTATION,
    PARAMS,
    checkpoint_in,
    same_tensors,
    train,
    with_params,
)


class SimulatedCrash(BaseException):
    """Nothing in the code under test may catch it."""


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "optimizer": "adamw", "balance": "sampler"}])
def test_resumed_training_is_bit_identical_to_uninterrupted(fabric, tmp_path, settings):
    p = with_params(**settings)
    nfgsm = make_training_method(p, Budget.of("linf", EPS))
    uninterrupted = train(fabric, tmp_path / "uninterrupted", p, nfgsm)

    def crash_after(epoch):
        def on_epoch(row):
            if row["epoch"] == epoch:
                raise SimulatedCrash

        return on_epoch

    for epoch in (1, 2):
        torch.rand(epoch)  # after a restart the global generator is in another state
        with pytest.raises(SimulatedCrash):
            train(fabric, tmp_path / "interrupted", p, nfgsm, crash_after(epoch))
    resumed = train(fabric, tmp_path / "interrupted", p, nfgsm)
    assert resumed.history == uninterrupted.history
    assert resumed.epoch == uninterrupted.epoch
    assert same_tensors(resumed.state, uninterrupted.state)


def test_weights_depend_on_seed_only(fabric, tmp_path):
    p = with_params(epochs=1)
    runs = [train(fabric, tmp_path / f"{i}", p, seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, second, other = (run.state for run in runs)
    assert same_tensors(first, second)
    assert not same_tensors(first, other)


def test_training_learns_and_selects_best_epoch(fabric, tmp_path):
    progress = train(
        fabric, tmp_path / "c", with_params(epochs=12, lr=0.05, augment=NO_AUGMENTATION)
    )
    assert max(row["val_clean_accuracy"] for row in progress.history) > 0.8
    best = min(progress.history, key=lambda row: row["val_loss"])
    write_history(tmp_path / "h.csv", progress)
    history = pd.read_csv(tmp_path / "h.csv")
    assert history.loc[history["chosen"] == 1, "epoch"].tolist() == [best["epoch"]]


class NothingImproves(StandardValidation):
    def score(self, row):
        return (0.0,)


def test_patience_stops_training(fabric, tmp_path):
    p = with_params(epochs=9, patience=2)
    progress = train(fabric, tmp_path / "c", p, validation=NothingImproves)
    assert (progress.epoch, len(progress.history)) == (1, 3)


class NanWeightsInSixthStep(StandardTraining):
    """The last step of the second epoch makes the weights NaN, after its loss."""

    steps = 0

    def perturb(self, model, x, y, eps, noise):
        self.steps += 1
        if self.steps == 6:
            next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return x


def test_epoch_that_ends_in_nan_weights_is_never_selected(fabric, tmp_path):
    message = "epoch 2: expected a finite validation loss, got nan; lower lr"
    with pytest.raises(FloatingPointError, match=message):
        train(fabric, tmp_path / "c", method=NanWeightsInSixthStep(PARAMS))
    assert len(checkpoint_in(tmp_path / "c").load()["progress"]["history"]) == 1


def test_catastrophic_overfitting_stops_training_and_keeps_best_epoch(fabric, tmp_path, capsys):
    eps = 48 / 255  # so large that FGSM is far from the worst case: its training overfits
    settings = {"method": "fgsm", "lr": 0.1, "eps_ramp": 0.0, "clip_norm": 0.0, "epochs": 20}
    p = with_params(**settings, augment=NO_AUGMENTATION, batch_size=32, val_images=96, val_steps=10)
    method, dataset = make_training_method(p, Budget.of("linf", eps)), toy_dataset(384, 16)
    run = {"dataset": dataset, "validation": RobustValidation, "eps": eps}
    progress = train(fabric, tmp_path / "c", p, method, **run)
    epochs, last = len(progress.history), progress.history[-1]
    overfitted = [row["catastrophic_overfitting"] for row in progress.history]
    assert epochs < p.epochs
    assert overfitted == [0.0] * (epochs - 1) + [1.0]
    assert last["val_fgsm_accuracy"] > last["val_robust_accuracy"] + 0.15
    robust = [row["val_robust_accuracy"] for row in progress.history]
    assert robust[progress.epoch - 1] == max(robust)
    assert last["robust_overfitting"] == pytest.approx(max(robust) - robust[-1])
    stopped = f"stopped after epoch {epochs}/20, keeping epoch {progress.epoch}: catastrophic"
    assert stopped in capsys.readouterr().out
    resumed = train(fabric, tmp_path / "c", p, method, **run)
    assert resumed.history == progress.history, "a stopped training is not continued"
