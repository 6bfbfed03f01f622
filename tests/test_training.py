"""The training loop: schedules in closed form, resume equal to uninterrupted, clear stops."""

import dataclasses
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core import models, perturbations
from stages.core.augmentation import augment
from stages.core.batches import Split
from stages.core.checkpoints import BusyError, Checkpoint, work_key
from stages.core.params import Augment, Training
from stages.core.store import StoreError
from stages.core.training import (
    Validation,
    class_weights,
    epoch_order,
    eps_factor,
    fit,
    lr_factor,
    make_optimizer,
    write_history,
)
from tests.conftest import tiny_classifier, toy_store

EPS = 8 / 255
STILL = Augment(flip=False, rotate90=False, shift=0.0, zoom=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
BUSY = Augment(flip=True, rotate90=True, shift=0.2, zoom=0.2, brightness=0.3, contrast=0.3, saturation=0.3)
P = Training(
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
)


def train(fabric, folder, p=P, perturb=None, on_epoch=lambda row: None, seed=0):
    store = toy_store(size=16)
    torch.manual_seed(seed)
    model = tiny_classifier(store.classes)
    attack = partial(perturbations.pgd, alpha=EPS / 2, steps=p.val_steps)
    validation = Validation(
        Split.of(store, "val"), attack, EPS, p.val_images, lambda row: (row["val_clean_accuracy"], -row["val_loss"])
    )
    checkpoint = Checkpoint("test", "key")
    checkpoint.folder = Path(folder)
    checkpoint.file = checkpoint.folder / "last.pt"
    checkpoint.folder.mkdir(exist_ok=True)
    return fit(
        fabric,
        model,
        Split.of(store, "train"),
        validation,
        p,
        seed=seed,
        checkpoint=checkpoint,
        perturb=perturb,
        eps=EPS,
        eps_ramp=0.5,
        on_epoch=on_epoch,
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(BaseException):
    """Stands in for a kill: nothing in the code under test may catch it."""


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "optimizer": "adamw", "balance": "sampler"}])
def test_resume_equals_uninterrupted(fabric, tmp_path, settings):
    p = dataclasses.replace(P, **settings)
    whole = train(fabric, tmp_path / "whole", p, perturbations.nfgsm)

    def kill_after(epoch):
        def on_epoch(row):
            if row["epoch"] == epoch:
                raise Killed

        return on_epoch

    for epoch in (1, 2):
        torch.rand(epoch)  # the global generator stands elsewhere after a restart
        with pytest.raises(Killed):
            train(fabric, tmp_path / "parts", p, perturbations.nfgsm, kill_after(epoch))
    resumed = train(fabric, tmp_path / "parts", p, perturbations.nfgsm)
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


@pytest.mark.parametrize("method", ["fgsm", "fgsm_rs", "nfgsm", "pgd"])
def test_every_method_trains_on_perturbed_pictures(method, fabric, tmp_path):
    class A:
        alpha_rel, steps = 0.5, 2

    A.method = method
    seen = []

    def spy(model, x, y, eps, noise):
        x_adv = perturbations.for_training(A)(model, x, y, eps, noise)
        seen.append((eps, (x_adv - x).abs().max().item()))
        return x_adv

    result = train(fabric, tmp_path / "c", dataclasses.replace(P, epochs=2), spy)
    assert math.isfinite(result.history[-1]["train_loss"])
    assert seen[0][0] == 0.0
    assert seen[-1][0] == EPS
    assert all(moved <= 3 * eps + 1e-6 for eps, moved in seen)
    assert seen[-1][1] > 0


def test_patience_stops(fabric, tmp_path):
    result = train(fabric, tmp_path / "c", dataclasses.replace(P, epochs=9, lr=1e-9, patience=2, augment=STILL))
    assert len(result.history) == result.epoch + 2


def test_infinite_loss_stops_with_epoch_and_step_and_keeps_the_state_before(fabric, tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+: expected a finite loss"):
        train(fabric, tmp_path / "c", dataclasses.replace(P, lr=1e30, clip_norm=0.0, warmup=0.0))


def test_full_disk_while_saving_keeps_the_state_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint("test", "key")
    checkpoint.folder, checkpoint.file = tmp_path, tmp_path / "last.pt"
    checkpoint.save({"epoch": 1})

    def full(state, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last.pt: expected to save .* No space left"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load() == {"epoch": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_a_second_trainer_of_the_same_work_is_refused(fabric, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    other = (
        "import sys; from lightning_fabric import Fabric; from stages.core.checkpoints import *\n"
        "try:\n  with Checkpoint('s', 'k').held(Fabric(accelerator='cpu')): pass\n"
        "except BusyError: sys.exit(7)"
    )
    root = Path(__file__).parents[1]
    with Checkpoint("s", "k").held(fabric):
        assert subprocess.run([sys.executable, "-c", other], cwd=root, check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", other], cwd=root, check=False).returncode == 0
    assert issubclass(BusyError, ValueError)


def test_work_key_changes_with_params_and_inputs(tmp_path):
    file = tmp_path / "input"
    file.write_bytes(b"1")
    keys = [work_key(P, [file]), work_key(dataclasses.replace(P, lr=0.3), [file])]
    file.write_bytes(b"2")
    keys.append(work_key(P, [file]))
    assert len(set(keys)) == 3
    assert work_key(P, [file]) == keys[2]


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    factors = [lr_factor(step, 100, 0.2) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[20] == pytest.approx(1)
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert lr_factor(0, 100, 0.0) == 1


def test_budget_ramp():
    assert [eps_factor(step, 100, 0.5) for step in (0, 25, 50, 99)] == [0, 0.5, 1, 1]
    assert eps_factor(0, 100, 0.0) == 1


def test_class_weights_give_every_class_the_same_total():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    assert np.allclose(weights * np.bincount(labels), 10 / 3)
    assert weights[labels].mean() == pytest.approx(1)


def test_sampler_draws_every_class_as_often():
    split = Split(np.zeros((3000, 1, 1, 3), np.uint8), np.array([0] * 2700 + [1] * 300), np.arange(3000))
    order = epoch_order(split, 2, dataclasses.replace(P, balance="sampler"), torch.Generator().manual_seed(0))
    assert abs(split.labels[order].mean() - 0.5) < 0.05
    order = epoch_order(split, 2, P, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(3000))


def test_norms_and_biases_do_not_decay_and_the_backbone_has_its_own_rate():
    model = models.build("resnet18", ("a", "b"), 32, "none", "none", 0)
    model.freeze("layer1")
    optimizer = make_optimizer(model, dataclasses.replace(P, backbone_lr=0.1))
    names = {id(p): n for n, p in model.backbone.named_parameters()}
    members = [(names[id(p)], group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert {n for n, _, _ in members} == {n for n in names.values() if not n.startswith(("conv1", "bn1", "layer1"))}
    for name, lr, decay in members:
        assert lr == pytest.approx(0.02 if name.startswith("fc.") else 0.002)
        assert decay == (0 if "bn" in name or "downsample.1" in name or name.endswith("bias") else 5e-4)


def test_augmentation_keeps_range_and_identity():
    x = torch.rand(16, 3, 20, 20)
    draws = torch.rand(16, 8)
    assert torch.allclose(augment(x, STILL, draws), x, atol=1e-5)
    changed = augment(x, BUSY, draws)
    assert changed.shape == x.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(changed, augment(x, BUSY, draws))


def test_a_shift_without_zoom_keeps_every_pixel_sharp():
    x = torch.rand(32, 3, 20, 20)
    shifted = augment(x, dataclasses.replace(STILL, shift=0.2), torch.rand(32, 8))
    assert not torch.allclose(shifted, x, atol=1e-3)
    values = torch.cdist(shifted[0].reshape(3, -1).T, x[0].reshape(3, -1).T).amin(1)
    assert values.max() < 1e-3, "every pixel is one of the original's"


def test_flips_and_turns_move_pixels_without_mixing_them():
    x = torch.rand(1, 3, 8, 8)
    turns = dataclasses.replace(STILL, flip=True, rotate90=True)
    wanted = [torch.rot90(m, k, (2, 3)) for m in (x, x.flip(3)) for k in range(4)]
    found = set()
    for flip in (0.1, 0.9):
        for turn in (0.1, 0.3, 0.6, 0.9):
            out = augment(x, turns, torch.tensor([[flip, turn, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]))
            found |= {i for i, w in enumerate(wanted) if torch.allclose(out, w, atol=1e-4)}
    assert found == set(range(8))


def test_an_empty_split_is_refused():
    store = toy_store(images=6)
    with pytest.raises(StoreError, match="expected photographs in the split 'test'"):
        Split.of(store, "test")
