"""The simulated downlink meets capacity, Sionna's own chain, and the order that better CSI must give."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from sionna.phy import config as sionna_config
from sionna.phy.channel import AWGN
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import BinarySource, Demapper, Mapper
from sionna.phy.mimo import rzf_precoding_matrix

from airlam.errors import DataError, SpecError
from airlam.radio.precoding import maximum_ratio, regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import LinkSpec
from airlam.tasks.link_level import METRICS, LinkResult, check_link, evaluate_link, group_users


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def flat_channels(num_groups: int, num_users: int, num_bs_ant: int, seed: int = 0) -> torch.Tensor:
    """Rayleigh in space, constant over 2 slots and 12 subcarriers."""
    h = random_channel(num_groups, num_users, 1, num_bs_ant, 1, seed=seed)
    return h.expand(-1, -1, 2, -1, 12).contiguous()


def small_spec(**changes: object) -> LinkSpec:
    values: dict[str, object] = dict(num_users=2, snr_db=(-5.0, 5.0), num_bits_per_symbol=2)
    return LinkSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def imperfect() -> LinkResult:
    true = flat_channels(12, 2, 4)
    error = random_channel(*true.shape, seed=1)
    estimates = {"bad": true + 0.8 * error, "good": true + 0.1 * error, "genie": true}
    return evaluate_link(true, estimates, small_spec(snr_db=(-15.0, 0.0, 15.0)))


def test_better_csi_gives_a_better_link(imperfect: LinkResult) -> None:
    genie, good, bad = (imperfect.mean(m, "sum_rate_bit_per_s_per_hz") for m in ("genie", "good", "bad"))
    assert (genie >= good).all() and (good >= bad).all()
    assert imperfect.mean("genie", "bler")[0] == 1 and imperfect.mean("genie", "bler")[-1] < 0.05
    threshold = imperfect.snr_db_at_target_bler
    assert threshold["genie"] is not None and threshold["good"] is not None
    assert threshold["genie"] <= threshold["good"] + 0.3  # a tenth of error variance costs little
    assert all(row.value >= 0 for row in imperfect.gain_rows("genie", "bad") if "sum_rate" in row.metric)


def test_metrics_agree_with_each_other(imperfect: LinkResult) -> None:
    full = 2 * 2 * 0.5 * 12 / 14  # users x bits x code rate x data symbols of 14
    expected = full * (1 - imperfect.values["bler"])
    np.testing.assert_allclose(imperfect.values["throughput_bit_per_s_per_hz"], expected, rtol=1e-6)
    assert (imperfect.values["ber"] <= imperfect.values["bler"]).all()
    for row in imperfect.rows():
        assert row.low <= row.value + 1e-12 and row.value <= row.high + 1e-12


def test_result_is_json_without_nan(imperfect: LinkResult) -> None:
    rows = [dataclasses.asdict(row) for row in imperfect.rows()]
    assert len(json.loads(json.dumps(rows, allow_nan=False))) == len(METRICS) * 3 * 3
    assert json.loads(json.dumps(imperfect.settings, allow_nan=False))["num_groups"] == 12
    with pytest.raises(SpecError, match="no method 'lamm'"):
        imperfect.mean("lamm", "bler")


def test_a_method_may_have_a_precoder_of_its_own_that_is_told_its_groups() -> None:
    true = flat_channels(5, 2, 4)
    spec = small_spec(snr_db=(3.0,))
    unit = true / true.abs().square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    h = unit.permute(0, 2, 4, 1, 3)  # [groups, slots, subcarriers, users, antennas]
    told: list[slice] = []

    def of_the_truth(believed: torch.Tensor, noise_variance: float, rows: slice) -> torch.Tensor:
        told.append(rows)
        return regularized_zero_forcing(h[rows], noise_variance)

    def matched(believed: torch.Tensor, noise_variance: float, rows: slice) -> torch.Tensor:
        return maximum_ratio(believed)

    wrong = random_channel(*true.shape, seed=7)
    result = evaluate_link(
        true,
        {"plain": true, "told": wrong, "matched": true},
        spec,
        groups_per_chunk=2,
        precoders={"told": of_the_truth, "matched": matched},
    )
    assert {(rows.start, rows.stop) for rows in told} == {(0, 2), (2, 4), (4, 6)}
    for values in result.values.values():
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    expected = sum_rate_bit_per_s_per_hz(h, maximum_ratio(h), 10**-0.3).mean(dim=(1, 2))
    found = result.values["sum_rate_bit_per_s_per_hz"][2, 0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert result.settings["precoder"].endswith("of matched, told their own")


def test_methods_are_paired_and_independent_of_order_chunks_and_global_seed() -> None:
    true = flat_channels(5, 2, 4)
    noisy = true + 0.3 * random_channel(*true.shape, seed=1)
    spec = small_spec(snr_db=(1.0,))
    state = sionna_config.torch_rng("cpu").get_state()
    first = evaluate_link(true, {"a": noisy, "b": true, "again": noisy}, spec)
    assert torch.equal(state, sionna_config.torch_rng("cpu").get_state())
    sionna_config.torch_rng("cpu").manual_seed(99)
    second = evaluate_link(true, {"b": true, "a": noisy}, spec, groups_per_chunk=2)
    for metric in METRICS:
        np.testing.assert_array_equal(first.values[metric][0], first.values[metric][2])
        np.testing.assert_allclose(first.values[metric][0], second.values[metric][1], atol=1e-6)
        np.testing.assert_allclose(first.values[metric][1], second.values[metric][0], atol=1e-6)
    other = evaluate_link(true, {"a": noisy}, spec, seed=2)
    assert not np.array_equal(first.values["ber"][0], other.values["ber"][0])


def test_single_antenna_link_respects_capacity_and_meets_sionnas_awgn_chain() -> None:
    true = torch.ones(60, 1, 2, 1, 12, dtype=torch.complex64)
    snr_db = 1.5
    spec = LinkSpec(num_users=1, snr_db=(-2.0, snr_db, 5.0), num_bits_per_symbol=2, num_drops=60)
    result = evaluate_link(true, {"genie": true}, spec)
    bler = result.mean("genie", "bler")
    assert bler[0] == 1 and bler[2] == 0
    threshold = result.snr_db_at_target_bler["genie"]
    # QPSK carries half a bit per bit at 0.19 dB at best; a 288-bit code stays within 3 dB of that
    assert threshold is not None and 0.19 < threshold < 3.2
    rate = result.mean("genie", "sum_rate_bit_per_s_per_hz")[1]
    assert rate == pytest.approx(math.log2(1 + 10 ** (snr_db / 10)), rel=1e-5)
    reference = sionna_awgn_bler(num_blocks=600, snr_db=snr_db)
    deviation = math.sqrt(reference * (1 - reference) * (1 / 600 + 1 / 120))
    assert abs(bler[1] - reference) < 4 * deviation


def sionna_awgn_bler(num_blocks: int, snr_db: float) -> float:
    """The same code and modulation through Sionna's AWGN channel, nothing of ours."""
    sionna_config.torch_rng("cpu").manual_seed(5)
    encoder = LDPC5GEncoder(144, 288, num_bits_per_symbol=2, device="cpu")
    decoder = LDPC5GDecoder(encoder, cn_update="boxplus", num_iter=12, device="cpu")
    bits = BinarySource(device="cpu")([num_blocks, 144])
    no = torch.tensor(10 ** (-snr_db / 10))
    y = AWGN(device="cpu")(Mapper("qam", 2, device="cpu")(encoder(bits)), no)
    llr = Demapper("app", "qam", 2, device="cpu")(y, no)
    return float((decoder(llr) != bits).any(dim=-1).float().mean())


def test_precoder_equals_sionnas() -> None:
    h = random_channel(10, 4, 8)
    ours = regularized_zero_forcing(h, 0.05, total_power=4.0)
    torch.testing.assert_close(ours, rzf_precoding_matrix(h, alpha=0.05), rtol=1e-4, atol=1e-5)


def test_channel_scale_does_not_matter() -> None:
    true = flat_channels(3, 2, 4)
    scale = torch.tensor([1e-6, 300.0]).view(1, 2, 1, 1, 1)
    spec = small_spec(snr_db=(0.0,))
    plain = evaluate_link(true, {"genie": true}, spec)
    scaled = evaluate_link(true * scale, {"genie": true * scale}, spec)
    for metric in METRICS:
        np.testing.assert_allclose(plain.values[metric], scaled.values[metric], rtol=1e-4)


@pytest.mark.parametrize("num_users", [1, 3])
def test_dmrs_receiver_approaches_the_one_that_knows(num_users: int) -> None:
    true = flat_channels(6, num_users, 8)
    spec = small_spec(num_users=num_users, snr_db=(-20.0, 15.0))
    known = evaluate_link(true, {"genie": true}, spec)
    estimated = evaluate_link(true, {"genie": true}, dataclasses.replace(spec, receiver="dmrs"))
    assert estimated.mean("genie", "bler")[1] == 0
    assert estimated.mean("genie", "ber")[0] >= known.mean("genie", "ber")[0] - 0.01


@pytest.mark.parametrize(("num_bits_per_symbol", "coderate"), [(1, 0.5), (6, 0.75), (8, 0.9)])
def test_other_modulations_are_error_free_at_high_snr(num_bits_per_symbol: int, coderate: float) -> None:
    true = flat_channels(2, 2, 8)
    spec = small_spec(num_bits_per_symbol=num_bits_per_symbol, coderate=coderate, snr_db=(45.0,))
    result = evaluate_link(true, {"genie": true}, spec)
    assert result.mean("genie", "ber")[0] == 0


def test_a_wide_grid_is_cut_into_blocks_that_the_code_takes() -> None:
    true = torch.ones(1, 1, 1, 2, 400, dtype=torch.complex64)
    spec = small_spec(num_users=1, num_bits_per_symbol=4, coderate=0.75, snr_db=(30.0,))
    result = evaluate_link(true, {"genie": true}, spec)
    assert result.settings["block_information_bits"] <= 8448
    assert result.settings["num_blocks_per_point"] == 2
    assert result.mean("genie", "bler")[0] == 0


def test_groups_hold_distinct_users_and_match_across_tensors() -> None:
    links = torch.arange(11).view(11, 1, 1, 1, 1).expand(-1, 2, 3, 4, 5).to(torch.complex64)
    groups = group_users(links, 3, seed=7)
    assert groups.shape == (3, 3, 2, 4, 5)
    users = groups[:, :, 0, 0, 0].real
    assert len(users.unique()) == 9
    assert torch.equal(group_users(2 * links, 3, seed=7), 2 * groups)
    assert not torch.equal(group_users(links, 3, seed=8), groups)


def test_true_drops_stay_together() -> None:
    links = torch.arange(6).view(6, 1, 1, 1, 1).to(torch.complex64)
    groups = group_users(links, 2, seed=1, users_per_drop=3)
    assert groups[:, :, 0, 0, 0].real.tolist() == [[0, 1], [3, 4]]
    with pytest.raises(SpecError, match="set num_users to at most 3"):
        group_users(links, 4, seed=1, users_per_drop=3)
    with pytest.raises(SpecError, match="lower num_users"):
        group_users(links, 7, seed=1)


def test_bad_channels_are_named() -> None:
    true = flat_channels(2, 2, 4)
    broken = true.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    spec = small_spec()
    with pytest.raises(DataError, match="the lam channels hold NaN"):
        evaluate_link(true, {"lam": broken}, spec)
    with pytest.raises(DataError, match="the true channels hold a user whose channel is all zero"):
        evaluate_link(true * torch.tensor([0, 1]).view(1, 2, 1, 1, 1), {"lam": true}, spec)
    with pytest.raises(DataError, match="the lam channels are"):
        evaluate_link(true, {"lam": true[:1]}, spec)
    with pytest.raises(DataError, match="expected \\[num_groups, 3 users"):
        evaluate_link(true, {"lam": true}, small_spec(num_users=3))
    with pytest.raises(SpecError, match="give at least one method"):
        evaluate_link(true, {}, spec)
    with pytest.raises(SpecError, match="5G LDPC takes"):
        evaluate_link(true, {"lam": true}, small_spec(coderate=0.1))


def test_more_users_than_antennas_warns() -> None:
    true = flat_channels(1, 3, 2)
    with pytest.warns(UserWarning, match="3 users on 2 antennas"):
        evaluate_link(true, {"genie": true}, small_spec(num_users=3, snr_db=(0.0,)))


def test_progress_reaches_one() -> None:
    true = flat_channels(1, 2, 4)
    shares: list[float] = []
    evaluate_link(true, {"a": true, "b": true}, small_spec(), on_progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1


@pytest.mark.parametrize(
    ("changes", "num_links", "users_per_drop", "num_subcarriers"),
    [
        ({"num_users": 5}, 4, 1, 24),
        ({"num_users": 3}, 8, 2, 24),
        ({"num_users": 30}, 64, 1, 24),
        ({"num_bits_per_symbol": 1, "coderate": 0.2}, 8, 1, 2),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_it_is_begun(
    changes: dict[str, float], num_links: int, users_per_drop: int, num_subcarriers: int
) -> None:
    check_link(LinkSpec(num_users=2), 8, 2, 24)
    with pytest.raises(SpecError):
        check_link(LinkSpec(**changes), num_links, users_per_drop, num_subcarriers)  # type: ignore[arg-type]
