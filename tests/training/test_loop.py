"""The training loop: resuming, repeatability, selection of the best epoch, and when it stops."""

import dataclasses
import re
from functools import partial

import pytest
import torch

from stages.training import loop
from stages.training.loop import TrainingMethod, write_history
from stages.training.methods import make_training_method
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

NFGSM = make_training_method(PARAMS, norm="linf", eps=EPS)


class SimulatedCrash(BaseException):
    """Nothing in the code under test may catch it."""


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "optimizer": "adamw", "balance": "sampler"}])
def test_resumed_training_is_bit_identical_to_uninterrupted(fabric, tmp_path, settings):
    p = with_params(**settings)
    uninterrupted = train(fabric, tmp_path / "uninterrupted", p, NFGSM)

    def crash_after(epoch):
        def on_epoch(row):
            if row["epoch"] == epoch:
                raise SimulatedCrash

        return on_epoch

    for epoch in (1, 2):
        torch.rand(epoch)  # after a restart the global generator is in another state
        with pytest.raises(SimulatedCrash):
            train(fabric, tmp_path / "interrupted", p, NFGSM, crash_after(epoch))
    resumed = train(fabric, tmp_path / "interrupted", p, NFGSM)
    assert resumed.history == uninterrupted.history
    assert resumed.epoch == uninterrupted.epoch
    assert same_tensors(resumed.state, uninterrupted.state)


def test_weights_depend_on_seed_only(fabric, tmp_path):
    p = with_params(epochs=1)
    first, second, other = (
        train(fabric, tmp_path / str(i), p, seed=seed) for i, seed in enumerate((0, 0, 1))
    )
    assert same_tensors(first.state, second.state)
    assert not same_tensors(first.state, other.state)


def test_training_learns_and_selects_best_epoch(fabric, tmp_path):
    result = train(fabric, tmp_path / "c", with_params(epochs=12, lr=0.05, augment=NO_AUGMENTATION))
    accuracies = [row["val_clean_accuracy"] for row in result.history]
    assert max(accuracies) > 0.8
    assert accuracies[result.epoch - 1] == max(accuracies)
    write_history(tmp_path / "h.csv", result)
    assert (tmp_path / "h.csv").read_text().count(",1\n") == 1


def test_patience_stops_training(fabric, tmp_path):
    result = train(
        fabric, tmp_path / "c", with_params(epochs=9, lr=1e-9, patience=2, augment=NO_AUGMENTATION)
    )
    assert len(result.history) == result.epoch + 2


class NanInFifthStep(TrainingMethod):
    """Three steps make an epoch."""

    steps = 0

    def perturb(self, model, x, y, eps, noise):
        self.steps += 1
        return x * float("nan") if self.steps == 5 else x


def test_non_finite_loss_names_step_and_keeps_last_checkpoint(fabric, tmp_path):
    with pytest.raises(
        FloatingPointError, match="epoch 2, step 2: expected a finite loss, got nan"
    ):
        train(fabric, tmp_path / "c", method=NanInFifthStep())
    kept = checkpoint_in(tmp_path / "c").load()
    assert len(kept["history"]) == 1
    assert all(value.isfinite().all() for value in kept["learner"]["model"].values())


class NanWeightsAfter(TrainingMethod):
    """Makes the weights NaN in the last step of the second epoch, after its loss."""

    steps = 0

    def perturb(self, model, x, y, eps, noise):
        self.steps += 1
        if self.steps == 6:
            next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return x


def test_epoch_that_ends_in_nan_weights_is_never_selected(fabric, tmp_path):
    with pytest.raises(
        FloatingPointError, match="epoch 2: expected a finite validation loss, got nan; lower lr"
    ):
        train(fabric, tmp_path / "c", method=NanWeightsAfter())
    assert len(checkpoint_in(tmp_path / "c").load()["history"]) == 1


def test_eps_grows_linearly_to_full():
    method = TrainingMethod()
    method.eps = 0.1
    assert method.eps_at(0, 100) == 0.1
    method.eps_ramp = 0.5
    assert [method.eps_at(step, 100) for step in (0, 25, 50, 99)] == pytest.approx(
        [0, 0.05, 0.1, 0.1]
    )


class RecordCleanImages(TrainingMethod):
    """Perturbs every image it is given; records which images of each batch stayed clean."""

    def __init__(self, clean_fraction):
        self.clean_fraction = clean_fraction
        self.clean = []

    def perturb(self, model, x, y, eps, noise):
        return x + 0.01

    def losses(self, model, x, x_adv, y, criterion):
        self.clean.append((x_adv == x).flatten(1).all(1).tolist())
        return super().losses(model, x, x_adv, y, criterion)


@pytest.mark.parametrize("clean_fraction", [0.0, 0.3, 0.9])
def test_clean_fraction_of_each_batch_is_not_perturbed(clean_fraction, fabric, tmp_path):
    method = RecordCleanImages(clean_fraction)
    train(fabric, tmp_path / "c", with_params(epochs=1), method)
    assert method.clean == [[i < int(clean_fraction * 16) for i in range(16)]] * 3


class RecordLosses(TrainingMethod):
    """Standard training; records (losses, logits, labels) of each batch."""

    def __init__(self):
        self.batches = []

    def losses(self, model, x, x_adv, y, criterion):
        losses, logits = super().losses(model, x, x_adv, y, criterion)
        self.batches.append((losses, logits, y))
        return losses, logits


def test_class_weights_apply_to_smoothed_loss(fabric, tmp_path):
    """With balance "loss" the training loss is the mean of class weight times the method's loss, label smoothing included."""
    method = RecordLosses()
    dataset = toy_dataset(size=16)
    labels = dataset.labels.copy()
    labels[labels == 2] = 0  # two thirds, one third, none
    row = train(
        fabric,
        tmp_path / "c",
        with_params(epochs=1, lr=1e-9),
        method,
        dataset=dataclasses.replace(dataset, labels=labels),
    ).history[0]
    smoothing, means = 0.1, []
    weights = torch.tensor([48 / (3 * 32), 48 / (3 * 16), 48 / 3], dtype=torch.float64)
    for losses, logits, y in method.batches:
        log_p = logits.double().log_softmax(1)
        target = torch.full_like(log_p, smoothing / 3)
        target[torch.arange(len(y)), y] += 1 - smoothing
        expected = -(target * log_p).sum(1)
        assert torch.allclose(losses.double(), expected, atol=1e-5)
        means.append((weights[y] * expected).mean())
    assert row["train_loss"] == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)


def test_progress_bar_is_shown_on_terminals_only(fabric, tmp_path, monkeypatch, capsys):
    train(fabric, tmp_path / "log", with_params(epochs=2))
    log = capsys.readouterr()
    assert not log.err
    assert log.out.count("val: accuracy ") == 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        loop, "tqdm", partial(loop.tqdm, mininterval=0)
    )  # else the training ends before the first refresh
    train(fabric, tmp_path / "terminal", with_params(epochs=2))
    shown = capsys.readouterr().err.split("\r")
    assert any(
        re.search(r"epoch 2/2: .*\d<.*images.*loss=\d\.\d+, clean=\d\.\d+, robust=\d\.\d+", line)
        for line in shown
    )
