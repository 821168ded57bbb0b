"""Requests for precoders share batches and get what each would have got alone."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.serving.downlinks import Downlinks
from airlam.serving.precoding import PrecoderServices
from airlam.specs import PrecoderSpec


def precoder(seed: int) -> GraphPrecoder:
    """One whose answers are not those it starts with."""
    made = build_precoder(PrecoderSpec(width=8, num_edge_channels=2, num_layers=1), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return made.eval()


def downlinks(name: str, *shape: int, seed: int = 0) -> Downlinks:
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(shape, dtype=torch.complex64, generator=draw)
    return Downlinks(precoder=name, h=h, noise_variance=torch.full((shape[0],), 0.1))


def test_requests_of_one_size_run_together_and_get_what_they_would_alone() -> None:
    ran: list[tuple[str, int]] = []
    own = {"a": precoder(1), "b": precoder(2)}
    services = PrecoderServices(own, lambda name, count, seconds: ran.append((name, count)))
    requests = [
        downlinks("a", 2, 3, 8),
        downlinks("b", 1, 3, 8, seed=1),
        downlinks("a", 1, 5, 8, seed=2),
        downlinks("a", 3, 3, 8, seed=3),
    ]
    answers = services.precode(requests)
    assert sorted(ran) == [("precoder@a", 1), ("precoder@a", 5), ("precoder@b", 1)]
    for request, w in zip(requests, answers, strict=True):
        with torch.no_grad():
            alone = own[request.precoder].precode(request.h, request.noise_variance)
        torch.testing.assert_close(w, alone, rtol=1e-4, atol=1e-5)
        power = w.abs().square().sum((-2, -1))
        torch.testing.assert_close(power, torch.ones(len(request)), rtol=1e-6, atol=0)


def test_what_has_no_precoder_is_refused() -> None:
    good = downlinks("a", 2, 3, 8)
    silent, broken = good.h.clone(), good.h.clone()
    silent[1, 2] = 0
    broken[0, 0, 0] = torch.nan
    for h, noise, words in (
        (good.h[0], good.noise_variance, "expected complex64"),
        (good.h.real, good.noise_variance, "expected complex64"),
        (good.h[:0], good.noise_variance[:0], "expected complex64"),
        (good.h, good.noise_variance[:1], r"expected float32 \[2\]"),
        (good.h, -good.noise_variance, "finite and above 0"),
        (silent, good.noise_variance, "finite and above 0"),
        (broken, good.noise_variance, "finite and above 0"),
    ):
        with pytest.raises(SpecError, match=words):
            Downlinks(precoder="a", h=h, noise_variance=noise)
    with pytest.raises(SpecError, match="no precoder 'a'; there are b"):
        PrecoderServices({"b": precoder(2)}).precode([good])
