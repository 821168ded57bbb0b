"""The surface precoder: what it must not see makes no difference, any size runs, and it learns."""

import dataclasses
import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.graph_precoder import gram_of, sum_rates
from airlam.model.ris_precoder import SurfacePrecoder, SurfacePrecoderSpec, build_surface_precoder
from airlam.model.storage import fingerprint
from airlam.radio.beamforming import wmmse
from airlam.radio.precoding import sum_rate_bit_per_s_per_hz
from airlam.radio.ris import SurfaceLinks, alternating, quantised, random_reflection, weighted_rate
from airlam.specs import ModelSpec, PrecoderSpec

SPEC = SurfacePrecoderSpec(num_stages=3, width=8)


def random_links(
    batch: int, users: int, elements: int, antennas: int, seed: int = 0, direct: float = 0.5
) -> SurfaceLinks:
    draw = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, dtype=torch.complex64, generator=draw)

    return SurfaceLinks(
        direct=direct * gaussian(users, antennas),
        surface_users=gaussian(users, elements),
        base_surface=gaussian(elements, antennas) / elements**0.5,
    )


def awake(spec: SurfacePrecoderSpec = SPEC) -> SurfacePrecoder:
    """Of random weights everywhere, so that nothing is silent."""
    model = build_surface_precoder(spec, seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return model.eval()


def rates(model: SurfacePrecoder, links: SurfaceLinks, noise: float = 0.1) -> torch.Tensor:
    with torch.no_grad():
        w, reflection = model.precode(links, torch.full((len(links.direct),), noise))
    return sum_rate_bit_per_s_per_hz(links.effective(reflection), w, noise)


@pytest.mark.parametrize(("users", "elements", "antennas"), [(1, 1, 1), (2, 7, 3), (5, 30, 4), (9, 64, 8)])
def test_any_size_runs_and_power_and_magnitudes_are_exact(users: int, elements: int, antennas: int) -> None:
    links = random_links(4, users, elements, antennas)
    w, reflection = awake().precode(links, torch.full((4,), 0.1), 3.0)
    assert w.shape == (4, antennas, users) and reflection.shape == (4, elements)
    torch.testing.assert_close(w.abs().square().sum((-2, -1)), torch.full((4,), 3.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(reflection.abs(), torch.ones(4, elements))


def test_permuting_users_and_elements_permutes_answers() -> None:
    links, model = random_links(6, 4, 9, 6), awake()
    draw = torch.Generator().manual_seed(3)
    users, elements = torch.randperm(4, generator=draw), torch.randperm(9, generator=draw)
    turned = SurfaceLinks(
        direct=links.direct[:, users],
        surface_users=links.surface_users[:, users][..., elements],
        base_surface=links.base_surface[:, elements],
    )
    noise = torch.full((6,), 0.1)
    (w, reflection), (other_w, other) = model.precode(links, noise), model.precode(turned, noise)
    torch.testing.assert_close(other, reflection[:, elements], rtol=0, atol=1e-3)
    torch.testing.assert_close(other_w, w[..., users], rtol=0, atol=1e-3)


def test_phases_of_users_antennas_and_elements_do_not_matter() -> None:
    links, model = random_links(6, 4, 9, 6), awake()
    draw = torch.Generator().manual_seed(4)

    def turns(*shape: int) -> torch.Tensor:
        phase = 2 * math.pi * torch.rand(6, *shape, generator=draw)
        return torch.polar(torch.ones_like(phase), phase)

    user, antenna, element, into = turns(4, 1), turns(1, 6), turns(1, 9), turns(9, 1)
    turned = SurfaceLinks(
        direct=user * links.direct * antenna,
        surface_users=user * links.surface_users * element,
        base_surface=into * links.base_surface * antenna,
    )
    noise = torch.full((6,), 0.1)
    (w, reflection), (other_w, other) = model.precode(links, noise), model.precode(turned, noise)
    torch.testing.assert_close(other * element[:, 0] * into[..., 0], reflection, rtol=0, atol=2e-3)
    torch.testing.assert_close((antenna.mT * other_w).abs(), w.abs(), rtol=0, atol=1e-3)


def test_only_power_over_noise_counts() -> None:
    links, model = random_links(3, 3, 8, 4), awake()
    w, reflection = model.precode(links, torch.full((3,), 0.2), 2.0)
    other_w, other = model.precode(links.scaled(1e-3), torch.full((3,), 1e-7), 1.0)
    torch.testing.assert_close(other, reflection, rtol=0, atol=1e-3)
    torch.testing.assert_close(math.sqrt(2) * other_w, w, rtol=0, atol=1e-3)


def test_untrained_it_already_climbs() -> None:
    links = random_links(40, 4, 32, 6, direct=0.2)
    model = build_surface_precoder(dataclasses.replace(SPEC, num_stages=8), seed=1).eval()
    with torch.no_grad():
        course = model.unfold(links.scaled(10**0.5))
    by_stage = torch.stack([weighted_rate(received).mean() for received in course.received])
    assert by_stage.diff().min() > 0
    h = links.effective(random_reflection(links, torch.Generator().manual_seed(0)))
    random = sum_rate_bit_per_s_per_hz(h, wmmse(h, 0.1, num_iterations=50), 0.1)
    joint = alternating(links, 0.1, num_iterations=50).rates[-1]
    assert random.mean() + 2 < rates(model, links).mean() < joint.mean()


def test_training_raises_the_rate() -> None:
    links, held = random_links(64, 3, 16, 4), random_links(64, 3, 16, 4, seed=9)
    model = build_surface_precoder(SPEC, seed=1)
    before = rates(model, held).mean()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        course, answers = model(links.scaled(10**0.5))
        loss = -sum_rates(gram_of(course.h, 1.0), answers[-1]).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert rates(model, held).mean() > before + 0.1


def test_every_weight_is_learned_and_gradients_are_finite_where_users_fade() -> None:
    links = random_links(16, 6, 12, 3)
    links = SurfaceLinks(
        direct=links.direct * torch.logspace(0, -6, 6)[:, None],
        surface_users=links.surface_users * torch.logspace(0, -6, 6)[:, None],
        base_surface=links.base_surface,
    )
    model = awake().train()
    course, answers = model(links.scaled(100.0))
    (-sum_rates(gram_of(course.h, 1.0), answers[-1]).mean()).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients.values())
    assert all(
        grad.abs().max() > 0 for name, grad in gradients.items() if grad is not None and "stages" in name
    )


def test_without_a_direct_link_the_surface_serves_alone() -> None:
    links = random_links(8, 2, 24, 4, direct=0.0)
    found = rates(build_surface_precoder(dataclasses.replace(SPEC, num_stages=8), seed=1), links)
    assert torch.isfinite(found).all() and (found > 2).all()


def test_switched_elements_take_the_nearest_level_before_beams_are_made() -> None:
    links, model, noise = random_links(5, 3, 16, 4), awake(), torch.full((5,), 0.1)
    w, reflection = model.precode(links, noise, num_bits=2)
    _, free = model.precode(links, noise)
    torch.testing.assert_close(reflection, quantised(free, 2))
    expected = model.precoder.precode(links.effective(reflection), noise)
    torch.testing.assert_close(w, expected, rtol=1e-3, atol=1e-4)


def test_a_backbone_behind_it_changes_nothing_before_it_is_tuned() -> None:
    backbone = ModelSpec(backbone="small", num_layers=1, lora_rank=2)
    spec = dataclasses.replace(SPEC, precoder=PrecoderSpec(backbone=backbone))
    model, plain = build_surface_precoder(spec, seed=1).eval(), build_surface_precoder(SPEC, seed=1).eval()
    links, noise = random_links(3, 3, 16, 4), torch.full((3,), 0.1)
    with torch.no_grad():
        for ours, theirs in zip(model.precode(links, noise), plain.precode(links, noise), strict=True):
            torch.testing.assert_close(ours, theirs)
    adapters = [name for name, weight in model.named_parameters() if "lora" in name and weight.requires_grad]
    assert adapters


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (
        fingerprint(dict(build_surface_precoder(SPEC, seed=s).named_parameters())) for s in (1, 1, 2)
    )
    assert first == again != other


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="num_stages is 0, width 16; both must be at least 1"):
        SurfacePrecoderSpec(num_stages=0)
