"""Batches of several threads: the same results, in order, and errors are passed on."""

import numpy as np
import pytest
import torch

from stages.measurements.threads import equal_parts, run_in_threads


@pytest.fixture
def threads():
    """Sets the number of threads, which is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_without_images_there_are_no_parts():
    assert equal_parts(np.arange(0), 64) == []


@pytest.mark.parametrize("count", [1, 31, 32, 64, 65, 245, 1478])
def test_parts_are_a_power_of_two_and_equally_large(count):
    parts = equal_parts(np.arange(count), 64)
    sizes = [len(part) for part in parts]
    assert (len(parts) & (len(parts) - 1), max(sizes) - min(sizes) <= 1) == (0, True)
    assert max(sizes) <= 64
    assert np.array_equal(np.concatenate(parts), np.arange(count))


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_results_are_in_order_and_threads_as_before(threads, cores):
    threads(cores)
    parts = equal_parts(np.arange(245), 64)
    assert run_in_threads(lambda part: part.sum(), parts) == [part.sum() for part in parts]
    assert torch.get_num_threads() == cores


def test_error_of_a_batch_is_raised(threads):
    threads(2)
    with pytest.raises(ValueError, match="the second"):
        run_in_threads(fail_at_ten, [np.arange(5), np.arange(10, 15)])


def fail_at_ten(part):
    if part.min() == 10:
        raise ValueError("the second")
