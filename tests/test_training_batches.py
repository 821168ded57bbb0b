"""Samplers pass over everything, shuffled, a group at a time, and go on where they were."""

import pytest
import torch

from airlam.training import GroupSampler, Sampler
from airlam.training.batches import batches_in_order, group_sizes, make_sampler


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


class Grouped:
    """Nothing but sizes."""

    def __init__(self, *sizes: int) -> None:
        self.group_sizes = sizes

    def __len__(self) -> int:
        return sum(self.group_sizes)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return indices


SIZES = (5, 9, 2)


def group_of(indices: torch.Tensor) -> int:
    """The one group that all indices are in."""
    ends = torch.tensor(SIZES).cumsum(0)
    groups = torch.searchsorted(ends, indices, right=True).unique()
    assert len(groups) == 1
    return int(groups)


def test_a_batch_is_of_one_group_and_groups_take_turns() -> None:
    sampler = GroupSampler(SIZES, seed=0)
    drawn = [sampler.next(4) for _ in range(30)]
    groups = [group_of(indices) for indices in drawn]
    for turn in range(10):
        assert sorted(groups[3 * turn : 3 * turn + 3]) == [0, 1, 2]
    of_first = torch.cat([indices for indices, group in zip(drawn, groups, strict=True) if group == 0])
    for sample_pass in of_first.reshape(8, 5):
        assert sorted(sample_pass.tolist()) == list(range(5))


@pytest.mark.parametrize("drawn", [0, 1, 4, 7])
def test_a_restored_group_sampler_goes_on_the_same(drawn: int) -> None:
    sampler, other = GroupSampler(SIZES, seed=1), GroupSampler(SIZES, seed=2)
    for _ in range(drawn):
        sampler.next(3)
    other.restore(sampler.state)
    for _ in range(12):
        assert torch.equal(other.next(3), sampler.next(3))


def test_validation_sees_everything_once_and_keeps_groups_apart() -> None:
    batches = list(batches_in_order(Grouped(*SIZES), 4))
    assert torch.equal(torch.cat(batches), torch.arange(16))
    assert [group_of(indices) for indices in batches] == [0, 0, 1, 1, 1, 2]


def test_samples_without_groups_are_drawn_as_ever() -> None:
    class Plain:
        def __len__(self) -> int:
            return 7

        def batch(self, indices: torch.Tensor) -> torch.Tensor:
            return indices

    assert group_sizes(Plain()) == (7,) and group_sizes(Grouped(3, 4)) == (3, 4)
    assert isinstance(make_sampler(Plain(), 3), Sampler)
    assert torch.equal(make_sampler(Plain(), 3).next(5), Sampler(7, 3).next(5))
    assert torch.equal(torch.cat(list(batches_in_order(Plain(), 3))), torch.arange(7))
