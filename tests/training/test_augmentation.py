"""Augmentation: which pixels it moves and changes, and that its output is an image."""

import torch

from stages.training.augmentation import augment
from tests.helpers.training_runs import ALL_AUGMENTATIONS, NO_AUGMENTATION


def test_no_augmentation_is_identity():
    x = torch.rand(16, 3, 20, 20)
    assert torch.allclose(augment(x, NO_AUGMENTATION, torch.rand(16, 8)), x, atol=1e-5)


def test_augmentation_keeps_shape_and_range_and_is_deterministic():
    x = torch.rand(16, 3, 20, 20)
    random = torch.rand(16, 8)
    augmented = augment(x, ALL_AUGMENTATIONS, random)
    assert augmented.shape == x.shape
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert torch.equal(augmented, augment(x, ALL_AUGMENTATIONS, random))


def test_shift_without_zoom_does_not_interpolate():
    x = torch.rand(32, 3, 20, 20)
    shifted = augment(x, NO_AUGMENTATION.model_copy(update={"shift": 0.2}), torch.rand(32, 8))
    assert not torch.allclose(shifted, x, atol=1e-3)
    distances = torch.cdist(shifted[0].reshape(3, -1).T, x[0].reshape(3, -1).T).amin(1)
    assert distances.max() < 1e-3, "every pixel is a pixel of the original"


def test_flips_and_rotations_give_all_eight_orientations():
    x = torch.rand(1, 3, 8, 8)
    p = NO_AUGMENTATION.model_copy(update={"flip": True, "rotate90": True})
    expected = [torch.rot90(mirrored, k, (2, 3)) for mirrored in (x, x.flip(3)) for k in range(4)]
    found = set()
    for flip in (0.1, 0.9):
        for turn in (0.1, 0.3, 0.6, 0.9):
            augmented = augment(x, p, torch.tensor([[flip, turn, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]))
            found |= {
                i for i, image in enumerate(expected) if torch.allclose(augmented, image, atol=1e-4)
            }
    assert found == set(range(8))
