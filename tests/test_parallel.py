"""Work on all cores: the same results in the same order, whatever the threads."""

import threading

import pytest
import torch

from airlam.radio.parallel import on_all_cores


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_given_back(threads: int) -> None:
    assert on_all_cores(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    assert on_all_cores(lambda x: x, []) == []
    assert torch.get_num_threads() == threads


def test_each_call_has_one_thread_and_the_callers_gradient_mode(threads: int) -> None:
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = on_all_cores(lambda _: (torch.is_grad_enabled(), torch.get_num_threads()), range(6))
        assert found == [(enabled, 1)] * 6
    assert on_all_cores(lambda _: torch.get_num_threads(), [0]) == [threads]


def test_each_call_has_the_callers_inference_mode() -> None:
    for enabled in (True, False):
        with torch.inference_mode(enabled):
            assert on_all_cores(lambda _: torch.is_inference_mode_enabled(), range(6)) == [enabled] * 6


def test_results_do_not_depend_on_the_threads() -> None:
    matrices = torch.randn(12, 60, 60, generator=torch.Generator().manual_seed(0))
    together = on_all_cores(torch.linalg.inv, matrices)
    torch.set_num_threads(1)
    assert all(torch.equal(a, torch.linalg.inv(b)) for a, b in zip(together, matrices, strict=True))


def test_an_error_comes_through_and_threads_are_given_back(threads: int) -> None:
    def fail(index: int) -> int:
        if index == 3:
            raise ValueError("three")
        return index

    with pytest.raises(ValueError, match="three"):
        on_all_cores(fail, range(6))
    assert torch.get_num_threads() == threads
    assert threading.active_count() < 20
