"""Factors of different ranks: padding is exact, the singular values' way has the mean product."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.training.heterogeneous_ranks import LoraFactors, average_by_svd, average_padded, product_gap


def factors(rank: int, seed: int) -> LoraFactors:
    random = torch.Generator().manual_seed(seed)
    return LoraFactors(
        down=torch.randn(rank, 7, generator=random, dtype=torch.float64),
        up=torch.randn(5, rank, generator=random, dtype=torch.float64),
    )


DRAWN = [factors(1, 0), factors(3, 1), factors(2, 2)]
WEIGHTS = [0.5, 0.2, 0.3]
MEAN = torch.stack([w * one.product for w, one in zip(WEIGHTS, DRAWN, strict=True)]).sum(0)


def test_filling_up_changes_no_product_and_cutting_takes_it_back() -> None:
    one = DRAWN[0]
    assert one.at_rank(4).rank == 4
    torch.testing.assert_close(one.at_rank(4).product, one.product)
    assert torch.equal(one.at_rank(4).at_rank(1).down, one.down)


def test_padded_factors_are_averaged_one_by_one() -> None:
    found = average_padded(DRAWN, WEIGHTS)
    assert found.rank == 3
    torch.testing.assert_close(found.down[2], 0.2 * DRAWN[1].down[2])
    torch.testing.assert_close(
        found.up[:, 0], sum(w * d.up[:, 0] for w, d in zip(WEIGHTS, DRAWN, strict=True))
    )


def test_the_mean_of_factors_is_not_the_mean_of_products() -> None:
    assert product_gap(average_padded(DRAWN, WEIGHTS), DRAWN, WEIGHTS) > 0.1
    same = [DRAWN[1]] * 3
    assert product_gap(average_padded(same, WEIGHTS), same, WEIGHTS) < 1e-12


def test_singular_values_keep_the_mean_product_while_the_rank_allows() -> None:
    torch.testing.assert_close(average_by_svd(DRAWN, WEIGHTS, 6).product, MEAN)
    assert product_gap(average_by_svd(DRAWN, WEIGHTS, 6), DRAWN, WEIGHTS) < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_cut_to_a_rank_they_are_the_best_of_that_rank(rank: int) -> None:
    """Eckart and Young: what is lost is the norm of the other singular values."""
    found = average_by_svd(DRAWN, WEIGHTS, 6).at_rank(rank)
    lost = torch.linalg.svdvals(MEAN)[rank:].square().sum().sqrt()
    torch.testing.assert_close((found.product - MEAN).norm(), lost)
    torch.testing.assert_close(found.product, average_by_svd(DRAWN, WEIGHTS, rank).product)


def test_fresh_adapters_stay_able_to_learn() -> None:
    fresh = [LoraFactors(down=one.down, up=torch.zeros_like(one.up)) for one in DRAWN]
    found = average_by_svd(fresh, WEIGHTS, 3)
    assert not found.product.any()
    torch.testing.assert_close(found.down.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert product_gap(found, fresh, WEIGHTS) == 0


def test_factors_of_two_ranks_are_no_pair() -> None:
    with pytest.raises(SpecError, match="one rank"):
        LoraFactors(down=DRAWN[0].down, up=DRAWN[1].up)
