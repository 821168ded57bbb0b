"""Samples of a downlink are what they say, and the graph precoder learns from them."""

from pathlib import Path

import pytest
import torch

from airlam.bench import beamforming
from airlam.bench.beamforming import settings
from airlam.bench.beamforming.foreign import gcnwmmse_figures
from airlam.bench.beamforming.predicted import Known
from airlam.bench.beamforming.training import HeldSamples, trained_precoder
from airlam.errors import DataError
from airlam.model.graph_precoder import Shares, build_precoder, sum_rates
from airlam.model.storage import fingerprint
from airlam.specs import PrecoderSpec, TrainingSpec
from airlam.tasks.beamforming import (
    DownlinkSamples,
    UserChannels,
    downlink_spec,
    draw_users,
    imitation_loss,
    tune_precoder,
    unit_power,
)
from airlam.tasks.channel_prediction import quiet
from airlam.tasks.predicted_precoders import PredictionError

USERS = (2, 4, 6)


def samples(seed: int = 0) -> DownlinkSamples:
    draw = torch.Generator().manual_seed(3 + seed)
    pool = [UserChannels(h=torch.randn(9, 6, 3, 4, dtype=torch.complex64, generator=draw)) for _ in range(2)]
    return DownlinkSamples(pool=pool, num_users=USERS, group_size=16, seed=seed, left_out=(8,))


def test_a_batch_is_of_one_group_and_always_the_same() -> None:
    own = samples()
    assert len(own) == 48 and own.group_sizes == (16, 16, 16)
    for group, num_users in enumerate(USERS):
        index = torch.arange(16) + 16 * group
        batch, again = own.batch(index), own.batch(index.flip(0))
        assert batch.h.shape[:2] == (16, num_users) and batch.h.shape[2] not in (8, 0)
        assert batch.h.shape[2] >= 0.75 * num_users
        assert torch.equal(batch.h.flip(0), again.h)
        assert bool((batch.noise_variance > 10**-2.21).all() & (batch.noise_variance < 10**0.31).all())
    assert not torch.equal(samples(1).batch(torch.arange(3)).h, own.batch(torch.arange(3)).h)


def test_left_out_arrays_never_occur() -> None:
    own = samples()
    many = DownlinkSamples(pool=own.pool, num_users=(2,) * 60, group_size=2, seed=1, left_out=(8, 12))
    sizes = {many.batch(torch.tensor([2 * group])).h.shape[2] for group in range(60)}
    assert sizes == {4, 6, 9}


def test_drops_are_those_of_their_seed() -> None:
    spec = downlink_spec("umi", 3, (2, 4))
    one, again, other = (draw_users(spec, 4, seed).h for seed in (1, 1, 2))
    assert one.shape == (4, 3, 4, 2)
    assert torch.equal(one, again) and not torch.equal(one, other)
    power = unit_power(one.flatten(2)).abs().square().mean(-1)
    torch.testing.assert_close(power, torch.ones(4, 3))


def test_it_learns_to_beat_regularised_zero_forcing(tmp_path: Path) -> None:
    precoder = build_precoder(PrecoderSpec(width=16, num_edge_channels=4, num_layers=2), seed=0)
    training = TrainingSpec(
        num_steps=60, batch_size=16, learning_rate=5e-3, validation_every_steps=20, checkpoint_every_steps=60
    )
    fresh = samples(5).batch(torch.arange(16) + 32)  # six users, of other drops
    before = imitation_loss(precoder, fresh).mean()
    tune_precoder(precoder, samples(), samples(1), training, tmp_path, imitation_steps=20)
    with torch.no_grad():
        gram = fresh.gram
        ours, even = sum_rates(gram, precoder(gram)[-1]).mean(), sum_rates(gram, Shares.even(gram)).mean()
        assert imitation_loss(precoder, fresh).mean() < before
    assert ours > 1.02 * even


def test_the_benchmark_runs_and_says_what_it_left_out(tmp_path: Path) -> None:
    result = beamforming.run(quick=True, data=tmp_path, on_progress=quiet)
    assert {"n16k8.share_of_wmmse100", "n16k8.speedup_vs_wmmse100", "n16k16.share_of_wmmse100"} <= set(
        result["figures"]
    )
    assert {"unseen.share_of_wmmse100", "pilots_0db.gain_over_lmmse_rzf"} <= set(result["figures"])
    assert {"predicted_60kmh.sum_rate", "predicted_60kmh.lam.graph.sum_rate"} <= set(result["figures"])
    assert {
        f"predicted_60kmh.{csi}.robust_{how}.sum_rate{part}"
        for csi in ("best_classical", "lam", "level", "joint")
        for how in ("rzf", "graph")
        for part in ("", "_gain", "_gain_low", "_gain_high")
    } <= set(result["figures"])
    assert set(result["settings"]["skipped"]) == {"gcnwmmse", "ris_guo", "deepsense", "raytraced"}
    rates = {
        row["method"]: row["sum_rate_bit_per_s_per_hz"]
        for row in result["rows"]
        if row.get("setting") == "n16k8" and "method" in row
    }
    assert rates["mrt"] < rates["rzf"] < rates["wmmse_100"] < rates["dirty_paper_bound"]
    kept = trained_precoder(settings.GRAPH, settings.QUICK, _nothing_is_trained)  # from the cache
    assert fingerprint(dict(kept.named_parameters())) != fingerprint(
        dict(build_precoder(kept.spec, seed=settings.QUICK.training.seed).named_parameters())
    )


def _nothing_is_trained(what: str, done: int, total: int, note: str) -> None:
    raise AssertionError(f"{what} again")


def test_samples_that_are_held_are_those_drawn() -> None:
    own, held = samples(), HeldSamples(samples())
    assert held.group_sizes == own.group_sizes and len(held) == len(own)
    for index in (torch.tensor([20, 17, 31]), torch.tensor([16, 31]), torch.tensor([0])):
        one, other = held.batch(index), own.batch(index)
        assert torch.equal(one.h, other.h) and torch.equal(one.noise_variance, other.noise_variance)


def test_precoders_that_are_told_of_no_error_are_the_plain_ones() -> None:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(3, 4, 2, 8, 5, dtype=torch.complex64, generator=draw)  # [groups, users, slots, n, f]
    none = PredictionError(
        ports=torch.zeros(3, 4, 2, 5, 4, 4, dtype=torch.complex64), levels=torch.ones(2), num_polarizations=2
    )
    known = Known(h=h, estimates={"lam": h}, errors={"lam": none}, classical="hold")
    found = known.precoders(build_precoder(PrecoderSpec(), seed=0).eval())
    believed = h[1:].permute(0, 2, 4, 1, 3)  # of the last two groups: [groups, slots, f, users, n]
    w = {name: precode(believed, 0.1, slice(1, 3)) for name, precode in found.items()}
    assert set(w) == {"lam+rzf", "lam+graph", "lam+robust_rzf", "lam+robust_graph"}
    for name in ("rzf", "graph"):
        assert w[f"lam+{name}"].shape == (2, 2, 5, 8, 4)
        torch.testing.assert_close(w[f"lam+robust_{name}"], w[f"lam+{name}"], rtol=1e-3, atol=1e-4)


def test_a_file_that_is_not_the_example_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gcnwmmse_3bs_9ue.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="is not GCN-WMMSE's example"):
        gcnwmmse_figures(path, 1)
