"""Batches of several threads: the same results, in order, and errors are passed on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.measurements.threads import equal_parts, run_in_threads

TARGET = SimpleNamespace(load=torch.from_numpy)  # a batch is its positions


@pytest.fixture
def threads():
    """Sets the number of threads, which is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 31, 32, 64, 65, 245, 1478])
def test_parts_are_equally_large_and_for_any_power_of_two_of_threads(count):
    parts = equal_parts(np.arange(count), 64)
    sizes = [len(part) for part in parts]
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1 <= 65
    assert len(parts) == count or (len(parts) & (len(parts) - 1)) == 0
    assert np.array_equal(np.concatenate(parts), np.arange(count))


def add(target, batch, number):
    return {"sum": batch + number}


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_results_are_in_order_and_the_number_of_threads_is_as_before(threads, cores):
    threads(cores)
    batches = run_in_threads(add, TARGET, equal_parts(np.arange(245), 64), 7)
    found = torch.cat([batch["sum"] for batch in batches])
    assert torch.equal(found, torch.arange(245) + 7)
    assert torch.get_num_threads() == cores


def fail_at_ten(target, batch):
    if batch.min() == 10:
        raise ValueError("the second")
    return {}


def test_error_of_a_batch_is_raised(threads):
    threads(2)
    with pytest.raises(ValueError, match="the second"):
        run_in_threads(fail_at_ten, TARGET, [np.arange(5), np.arange(10, 15)])
