"""Augmentation moves pixels as it says and stays an image."""

import dataclasses

import torch

from stages.training.augmentation import augment
from tests.helpers.training_runs import BUSY, STILL


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
