"""The training loop: resume equal to uninterrupted, the same seed the same bits, clear stops."""

import dataclasses
import re
from functools import partial

import pytest
import torch

from stages.training import loop, methods
from stages.training.loop import TrainingMethod, write_history
from tests.conftest import toy_store
from tests.helpers.training_runs import EPS, STILL, P, checkpoint_in, same, train

NFGSM = methods.of(P, "linf", EPS)


class Killed(BaseException):
    """Stands in for a kill: nothing in the code under test may catch it."""


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "optimizer": "adamw", "balance": "sampler"}])
def test_resume_equals_uninterrupted(fabric, tmp_path, settings):
    p = dataclasses.replace(P, **settings)
    whole = train(fabric, tmp_path / "whole", p, NFGSM)

    def kill_after(epoch):
        def on_epoch(row):
            if row["epoch"] == epoch:
                raise Killed

        return on_epoch

    for epoch in (1, 2):
        torch.rand(epoch)  # the global generator stands elsewhere after a restart
        with pytest.raises(Killed):
            train(fabric, tmp_path / "parts", p, NFGSM, kill_after(epoch))
    resumed = train(fabric, tmp_path / "parts", p, NFGSM)
    assert resumed.history == whole.history
    assert resumed.epoch == whole.epoch
    assert same(resumed.state, whole.state)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fabric, tmp_path):
    p = dataclasses.replace(P, epochs=1)
    first, second, other = (train(fabric, tmp_path / str(i), p, seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert same(first.state, second.state)
    assert not same(first.state, other.state)


def test_it_learns_and_the_best_epoch_is_kept(fabric, tmp_path):
    result = train(fabric, tmp_path / "c", dataclasses.replace(P, epochs=12, lr=0.05, augment=STILL))
    accuracies = [row["val_clean_accuracy"] for row in result.history]
    assert max(accuracies) > 0.8
    assert accuracies[result.epoch - 1] == max(accuracies)
    write_history(tmp_path / "h.csv", result)
    assert (tmp_path / "h.csv").read_text().count(",1\n") == 1


def test_patience_stops(fabric, tmp_path):
    result = train(fabric, tmp_path / "c", dataclasses.replace(P, epochs=9, lr=1e-9, patience=2, augment=STILL))
    assert len(result.history) == result.epoch + 2


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step_and_keeps_the_state_before(fabric, tmp_path):
    calls = []

    def poisoned(model, x, y, eps, noise):
        calls.append(1)
        return x * float("nan") if len(calls) == 5 else x  # three steps make an epoch

    with pytest.raises(FloatingPointError, match="epoch 2, step 2: expected a finite loss, got nan"):
        train(fabric, tmp_path / "c", method=TrainingMethod(poisoned, eps=EPS))
    kept = checkpoint_in(tmp_path / "c").load()
    assert len(kept["history"]) == 1
    assert all(value.isfinite().all() for value in kept["learner"]["model"].values())


def test_the_budget_grows_in_a_line_to_full():
    method = TrainingMethod(eps=0.1, eps_ramp=0.5)
    assert [method.budget(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0, 0.05, 0.1, 0.1])
    assert TrainingMethod(eps=0.1).budget(0, 100) == 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_clean_share_of_a_batch_is_shown_as_it_is(share, fabric, tmp_path):
    shown = []

    def spy(model, x, x_adv, y, criterion):
        logits = model(x_adv)
        shown.append((x_adv == x).flatten(1).all(1))
        return criterion(logits, y), logits

    method = TrainingMethod(lambda model, x, y, eps, noise: x + 0.01, losses=spy, eps=EPS, clean_share=share)
    train(fabric, tmp_path / "c", dataclasses.replace(P, epochs=1), method)
    assert all(clean.tolist() == [i < int(share * 16) for i in range(16)] for clean in shown)


def test_rare_classes_count_as_much_in_all_of_the_loss(fabric, tmp_path):
    """With balance "loss" the loop's loss is the mean of weight times the method's loss, smoothing included."""
    told = []

    def spy(model, x, x_adv, y, criterion):
        logits = model(x_adv)
        losses = criterion(logits, y)
        told.append((losses, logits, y))
        return losses, logits

    store = toy_store(size=16)
    labels = store.labels.copy()
    labels[labels == 2] = 0  # two thirds, one third, none
    row = train(
        fabric,
        tmp_path / "c",
        dataclasses.replace(P, epochs=1, lr=1e-9),
        TrainingMethod(losses=spy),
        store=dataclasses.replace(store, labels=labels),
    ).history[0]
    share, total = 0.1, []
    weights = torch.tensor([48 / (3 * 32), 48 / (3 * 16), 48 / 3], dtype=torch.float64)
    for losses, logits, y in told:
        log_p = logits.double().log_softmax(1)
        target = torch.full_like(log_p, share / 3)
        target[torch.arange(len(y)), y] += 1 - share
        by_hand = -(target * log_p).sum(1)
        assert torch.allclose(losses.double(), by_hand, atol=1e-5)
        total.append((weights[y] * by_hand).mean())
    assert row["train_loss"] == pytest.approx(torch.stack(total).mean().item(), rel=1e-5)


def test_a_terminal_sees_rate_loss_accuracies_and_time_left_and_a_log_plain_lines(fabric, tmp_path, monkeypatch, capsys):
    train(fabric, tmp_path / "log", dataclasses.replace(P, epochs=2))
    quiet = capsys.readouterr()
    assert not quiet.err
    assert quiet.out.count("validation: clean") == 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(loop, "tqdm", partial(loop.tqdm, mininterval=0))  # the toy is done before it would show
    train(fabric, tmp_path / "terminal", dataclasses.replace(P, epochs=2))
    shown = capsys.readouterr().err.split("\r")
    assert any(re.search(r"epoch 2/2: .*\d<.*images.*loss=\d\.\d+, clean=\d\.\d+, robust=\d\.\d+", line) for line in shown)
