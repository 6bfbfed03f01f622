"""What an epoch does with its batches."""

import dataclasses

import pytest
import torch

from stages.core.norms import Budget
from stages.models.batches import DatasetSplit
from stages.training.epoch import StandardTraining, Training, train_epoch
from stages.training.methods import METHODS, Free, make_training_method
from stages.training.optimizer import Learner
from tests.helpers.datasets import toy_dataset
from tests.helpers.models import tiny_classifier
from tests.helpers.training_runs import EPS, PARAMS, checkpoint_in, train, with_params
from tests.helpers.waits import WaitCounter


class NanInFifthStep(StandardTraining):
    """Three steps make an epoch."""

    steps = 0

    def perturb(self, model, x, y, eps, noise):
        self.steps += 1
        return x * float("nan") if self.steps == 5 else x


def test_non_finite_loss_names_step_and_keeps_last_checkpoint(fabric, tmp_path):
    message = "epoch 2, step 2: expected a finite loss, got nan; lower lr"
    with pytest.raises(FloatingPointError, match=message):
        train(fabric, tmp_path / "c", method=NanInFifthStep(PARAMS))
    learner = checkpoint_in(tmp_path / "c").load()["learner"]
    assert all(value.isfinite().all() for value in learner["model"].values())


def test_eps_increases_linearly_to_full():
    method = StandardTraining(PARAMS)
    method.eps = 0.1
    assert method.eps_at(0, 100) == 0.1
    method.eps_ramp = 0.5
    ramp = [method.eps_at(step, 100) for step in (0, 25, 50, 99)]
    assert ramp == pytest.approx([0, 0.05, 0.1, 0.1])


class RecordingBatches(StandardTraining):
    """Perturbs every image it is given; records what each loss was computed of."""

    def __init__(self, p, clean_fraction=0.0):
        super().__init__(p)
        self.clean_fraction, self.batches = clean_fraction, []

    def perturb(self, model, x, y, eps, noise):
        return x + 0.01

    def losses(self, model, x, x_adv, y):
        losses, logits = super().losses(model, x, x_adv, y)
        self.batches.append((x, x_adv, y, losses.double(), logits.double()))
        return losses, logits


@pytest.mark.parametrize("clean_fraction", [0.0, 0.3, 0.9])
def test_clean_fraction_of_each_batch_is_not_perturbed(clean_fraction, fabric, tmp_path):
    p = with_params(epochs=1)
    method = RecordingBatches(p, clean_fraction)
    train(fabric, tmp_path / "c", p, method)
    clean = [(x_adv == x).flatten(1).all(1).tolist() for x, x_adv, *_ in method.batches]
    assert clean == [[i < int(clean_fraction * 16) for i in range(16)]] * 3


def test_class_weights_apply_to_smoothed_loss(fabric, tmp_path):
    """With balance "loss", the mean of class weight times label-smoothed cross-entropy."""
    p, dataset = with_params(epochs=1, lr=1e-9), toy_dataset(size=16)
    labels = dataset.labels.copy()
    labels[labels == 2] = 0  # two thirds, one third, none
    dataset, method = dataclasses.replace(dataset, labels=labels), RecordingBatches(p)
    row = train(fabric, tmp_path / "c", p, method, dataset=dataset).history[0]
    smoothing, means = 0.1, []
    weights = torch.tensor([48 / (3 * 32), 48 / (3 * 16), 48 / 3], dtype=torch.float64)
    for _, _, y, losses, logits in method.batches:
        log_p = logits.log_softmax(1)
        target = torch.full_like(log_p, smoothing / 3)
        target[torch.arange(len(y)), y] += 1 - smoothing
        expected = -(target * log_p).sum(1)
        assert torch.allclose(losses, expected, atol=1e-5)
        means.append((weights[y] * expected).mean().item())
    assert row["train_loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


class RecordingFree(Free):
    """Records (x, perturbation) of each step."""

    def __init__(self, p):
        super().__init__(p, Budget.of("linf", EPS))
        self.steps = []

    def losses(self, model, x, x_adv, y):
        self.steps.append((x.clone(), (x_adv - x).detach()))
        return super().losses(model, x, x_adv, y)


def test_free_replays_each_batch_with_updated_perturbation(fabric, tmp_path):
    p = with_params(method="free", steps=3, epochs=2, eps_ramp=0.0)
    free = RecordingFree(p)
    train(fabric, tmp_path / "c", p, free)
    assert len(free.steps) == 2 * 3, "48 images in batches of 16"
    first, second = free.steps[:3], free.steps[3:]
    for epoch in (first, second):
        assert all(torch.equal(x, epoch[0][0]) for x, _ in epoch), "one batch, three times"
        assert not torch.equal(epoch[0][1], epoch[1][1]), "the perturbation is updated"
    assert not torch.equal(first[0][0], second[0][0])


def test_progress_bar_is_shown_on_terminals_only(fabric, tmp_path, monkeypatch, capsys):
    train(fabric, tmp_path / "log", with_params(epochs=1))
    assert not capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(fabric, tmp_path / "terminal", with_params(epochs=1))
    assert "epoch 1/1:" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_gpu(method, fabric):
    p, counts = with_params(method=method, steps=2, awp=0.01), []
    for images in (96, 192):
        dataset = toy_dataset(images, size=16)
        model, split = tiny_classifier(dataset.classes), DatasetSplit.from_dataset(dataset, "train")
        how = make_training_method(p, Budget.of("linf", EPS))
        training = Training(model, split, how, p, seed=0)
        learner = Learner(fabric, model, p, training.steps)
        with WaitCounter() as counter:
            train_epoch(training, learner, 0)
        counts.append(counter.count)
    assert counts[0] == counts[1], "the metrics at its end are all that an epoch waits for"
