"""The surface's benchmark: its channels, what training draws of them, and a whole run in small."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from airlam.bench.beamforming import ris, ris_guo
from airlam.bench.beamforming.ris_channels import draw_links
from airlam.bench.beamforming.ris_training import (
    LEFT_OUT_ELEMENTS,
    POOL_ARRAY,
    POOL_SURFACE,
    POOL_USERS,
    TRAINED_USERS,
    SurfaceSamples,
    trained_surface_precoder,
)
from airlam.errors import DataError
from airlam.model.graph_precoder import build_precoder
from airlam.model.storage import fingerprint
from airlam.radio.ris import SurfaceLinks
from airlam.specs import PrecoderSpec


@pytest.fixture(scope="module")
def pool() -> SurfaceLinks:
    return draw_links(POOL_USERS, POOL_ARRAY, POOL_SURFACE, 4, seed=1)


def test_links_have_their_shapes_and_gains(pool: SurfaceLinks) -> None:
    links = draw_links(3, (2, 2), (4, 5), 30, seed=5)
    assert links.direct.shape == (30, 3, 4)
    assert links.surface_users.shape == (30, 3, 20) and links.base_surface.shape == (30, 20, 4)
    assert links.direct.dtype == torch.complex64
    again = draw_links(3, (2, 2), (4, 5), 30, seed=5)
    torch.testing.assert_close(again.direct, links.direct, rtol=0, atol=0)
    direct_db, incident_db = (
        10 * x.abs().square().mean((-2, -1)).log10().median() for x in (links.direct, links.base_surface)
    )
    # UMa at about 200 m and 2.4 GHz, TR 38.901 table 7.4.1-1: 111 dB without line of sight, 86 dB with it
    assert -86 - 8 < incident_db < -86 + 8
    assert 20 + 117.4 - 20 - 111 - 10 < direct_db < 20 + 117.4 - 20 - 111 + 10
    powers = torch.linalg.svdvals(pool.base_surface).square()
    assert (powers[:, 0] / powers.sum(-1)).median() > 0.5  # the line of sight rules


def test_samples_are_corners_of_the_pool_and_the_tests_size_is_left_out(pool: SurfaceLinks) -> None:
    samples = SurfaceSamples(pool, 40, 3, seed=2)
    assert len(samples) == 120 and samples.group_sizes == (3,) * 40
    seen = set()
    for group in range(40):
        links = samples.batch(torch.arange(3) + 3 * group)
        seen.add(links.direct.shape[1])
        assert links.num_elements not in LEFT_OUT_ELEMENTS
        torch.testing.assert_close(samples.batch(torch.tensor([3 * group + 1])).direct, links.direct[1:2])
        gains = (pool.base_surface.abs() - links.base_surface[0, 0, 0].abs()).abs().amin()
        assert gains < 1e-12  # the corner's first element is the pool's
    assert seen == set(TRAINED_USERS)
    assert not {case[0] for case in ris.UNSEEN.values()} & set(TRAINED_USERS)


def test_a_run_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    precoder = build_precoder(PrecoderSpec(), seed=1)
    before = fingerprint(dict(precoder.named_parameters()))
    rows, figures = ris.run_ris(ris.QUICK, precoder, lambda *_: None)
    assert fingerprint(dict(precoder.named_parameters())) == before  # which other benchmarks go on with
    kept = trained_surface_precoder("quick", ris.QUICK.training, precoder, _nothing_is_trained)
    assert kept.spec == ris.QUICK.training.spec
    for setting in (*ris.SEEN, *ris.UNSEEN):
        rates = {
            r["method"]: r["sum_rate_bit_per_s_per_hz"]
            for r in rows
            if r["setting"] == setting and "method" in r
        }
        best = next(name for name in rates if name.startswith("accelerated_best_of"))
        assert rates[best] >= rates["accelerated"] > rates["random_wmmse"]
        assert figures[f"{setting}.share_of_alternating"] == pytest.approx(
            rates[ris.LEARNED] / rates[ris.REFERENCE]
        )
    assert figures["ris.gain_over_random_phases"] > 0
    assert figures["ris.speedup_vs_alternating"] > 0
    unseen = [figures[f"{name}.share_of_alternating"] for name in ris.UNSEEN]
    assert figures["ris_unseen.share_of_alternating"] == min(unseen)


def _nothing_is_trained(*_: object) -> None:
    raise AssertionError("it is in the cache")


def test_the_first_iteration_that_is_enough() -> None:
    course = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 4.0]])
    assert ris.iterations_to(course, torch.tensor([1.0, 2.0])) == 1
    assert ris.iterations_to(course, torch.tensor([2.0, 3.5])) == 2
    assert ris.iterations_to(course, torch.tensor([9.0, 9.0])) is None


def test_published_channels_are_read_as_their_scripts_make_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def gaussian(*shape: int) -> np.ndarray:
        return draw.normal(size=shape) + 1j * draw.normal(size=shape)

    drops, users, elements, antennas = 5, 2, 6, 3
    theta = np.exp(1j * draw.uniform(0, 2 * np.pi, size=(elements, 1, drops)))
    plain = {"eb1": 0.9, "eb2": 0.4, "AP_angle": 0.3, "IRS_angle": 0.7, "User_angle": draw.random((1, users))}
    gains = {
        "pd": np.full((users, antennas), 2.0),
        "ps": np.full((users, elements), 0.5),
        "path_d": [[1.0, 3.0]],
    }
    spread = {"Hd_w": gaussian(users, antennas, drops), "G_sig": gaussian(elements, antennas, drops)}
    spread |= {"Hr_sig": gaussian(users, elements, drops), "theta_init": theta}
    path = tmp_path / ris_guo.FILE
    scipy.io.savemat(path, plain | gains | spread)
    links, start, weights = ris_guo.read_guo(path)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]).expand(drops, 2))
    d, n, m, k = 3, 4, 2, 1
    expected = 0.9 * np.exp(1j * np.pi * (n * np.sin(0.7) - m * np.sin(0.3))) + 0.4 * spread["G_sig"][n, m, d]
    assert complex(links.base_surface[d, n, m]) == pytest.approx(expected, rel=1e-5)
    line = np.exp(-1j * np.pi * n * np.sin(plain["User_angle"][0, k]))
    expected = 0.5 * (0.9 * line + 0.4 * spread["Hr_sig"][k, n, d])
    assert complex(links.surface_users[d, k, n]) == pytest.approx(expected, rel=1e-5)
    assert complex(start[d, n]) == pytest.approx(np.conj(theta[n, 0, d]), rel=1e-5)
    figures = ris_guo.guo_figures(path, 10)
    assert figures["ris_guo.alternating"] > figures["ris_guo.random_phases"]
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is not the published channels"):
        ris_guo.guo_figures(path, 1)
