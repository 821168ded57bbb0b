"""The sampler passes over everything, shuffled, and goes on where it was."""

import pytest
import torch

from airlam.training import Sampler


@pytest.mark.parametrize(("num_samples", "size"), [(10, 3), (7, 7), (3, 8)])
def test_each_pass_sees_everything_once(num_samples: int, size: int) -> None:
    sampler = Sampler(num_samples, seed=0)
    drawn = torch.cat([sampler.next(size) for _ in range(num_samples)])
    for sample_pass in drawn.reshape(size, num_samples):
        assert sorted(sample_pass.tolist()) == list(range(num_samples))


@pytest.mark.parametrize("drawn", [0, 1, 2, 3, 5])
def test_restored_goes_on_the_same(drawn: int) -> None:
    sampler = Sampler(9, seed=1)
    for _ in range(drawn):
        sampler.next(3)
    other = Sampler(9, seed=2)
    other.restore(sampler.state)
    for _ in range(8):
        assert torch.equal(other.next(3), sampler.next(3))


def test_seeds_differ_and_repeat() -> None:
    assert torch.equal(Sampler(50, 1).next(50), Sampler(50, 1).next(50))
    assert not torch.equal(Sampler(50, 1).next(50), Sampler(50, 2).next(50))
