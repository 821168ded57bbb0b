"""The guard: it keeps the last predictor unless training links say otherwise, by SNR and by fading."""

from dataclasses import dataclass

import pytest
import torch

from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.guard import decorrelation, guarded

NUM_SLOTS, NUM_HORIZON = 12, 2
LEVELS_DB = (10.0, 20.0, 30.0)  # at 0 dB the last slot is no better than nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """The last slot turned on by the mean phase step, times ``gain`` where fading is fast or slow."""

    name: str
    slow_gain: float = 1.0
    fast_gain: float = 1.0

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        step = (history[:, :-1].conj() * history[:, 1:]).mean((1, 2, 3, 4)).angle()
        turn = torch.polar(torch.ones_like(step), step)
        fast = (step.abs() > 0.3).float()
        gain = self.slow_gain + (self.fast_gain - self.slow_gain) * fast
        ahead = torch.stack([turn**slot for slot in range(1, NUM_HORIZON + 1)], dim=1)
        last = history[:, -1:] * gain.view(-1, 1, 1, 1, 1)
        return last * ahead.view(-1, NUM_HORIZON, 1, 1, 1)


def links(num_links: int, seed: int) -> TrainingLinks:
    """Two exponentials a link: a third of the links hardly change, the others change fast."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.where(torch.arange(num_links) % 3 == 0, 0.01, 0.6)
    slots = torch.arange(NUM_SLOTS + NUM_HORIZON)
    amplitude = torch.randn(2, num_links, 1, 1, 8, 64, dtype=torch.complex64, generator=generator)
    phase = spread.view(-1, 1) * slots  # [links, slots]
    waves = torch.stack([torch.polar(torch.ones_like(phase), k * phase) for k in (0.5, 1.5)])
    every = (amplitude * waves.view(2, num_links, -1, 1, 1, 1)).sum(0)  # [links, slots, 1, 8, 64]
    return TrainingLinks(history=every[:, :NUM_SLOTS], future=every[:, NUM_SLOTS:])


def test_each_fading_goes_to_who_predicts_it_best() -> None:
    """The first is spoiled where fading is fast: those links, and no others, go to the second."""
    mine, other = Extrapolation(name="mine", fast_gain=0.0), Extrapolation(name="other", slow_gain=0.0)
    guard = guarded("guarded", [mine, other], links(96, 0), levels_db=LEVELS_DB)
    assert len(guard.choices()) == len(LEVELS_DB)
    assert all(row[0] == "mine" and row[-1] == "other" for row in guard.choices().values())
    test = links(20, 1)
    noise = torch.full((20,), 1e-3)
    predicted = guard.predict(test.history, noise)
    for index in range(20):
        who = mine if index % 3 == 0 else other
        assert torch.allclose(predicted[index], who.predict(test.history, noise)[index])


@pytest.mark.parametrize(("num_links", "num_bands"), [(20, 1), (64, 2), (96, 3), (191, 3), (384, 6)])
def test_many_links_tell_more_kinds_of_fading_apart(num_links: int, num_bands: int) -> None:
    """From three bands on each has 64 links."""
    one = [Extrapolation(name="mine")]
    guard = guarded("guarded", one, links(num_links, 0), levels_db=(20.0,), num_links=num_links)
    assert [len(row) for row in guard.choices().values()] == [num_bands]


def test_the_last_stays_unless_another_is_better_beyond_chance() -> None:
    """Two alike, or another that is worse: no slow link moves. Another that is better: every one."""
    training, last = links(96, 0), Extrapolation(name="last", slow_gain=0.9)
    for gain, chosen in ((0.9, "last"), (0.5, "last"), (1.0, "other")):
        other = Extrapolation(name="other", slow_gain=gain)
        guard = guarded("guarded", [other, last], training, levels_db=LEVELS_DB[1:])
        assert [row[0] for row in guard.choices().values()] == [chosen] * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Blurred:
    """Another's prediction with errors of its own, which help as often as they harm."""

    name: str
    predictor: Predictor

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        future = self.predictor.predict(history, noise_variance)
        signs = (history[:, 0, 0, 0, 0].real > 0).float() - 0.5  # of either sign by chance
        return future * (1 + 0.1 * signs.view(-1, 1, 1, 1, 1))


def test_what_is_better_by_chance_alone_is_seldom_taken() -> None:
    """Against a shrunk prediction, a larger gain helps one link as a smaller one harms another."""
    last = Extrapolation(name="last", slow_gain=0.5, fast_gain=0.5)
    rival = Blurred(name="rival", predictor=last)
    taken = 0
    for seed in range(40):
        guard = guarded("guarded", [rival, last], links(32, seed), levels_db=(20.0,), num_links=32)
        taken += guard.choices()["20db"] == ["rival"]
    assert taken <= 4  # one in forty is expected


def test_the_guard_is_deterministic_and_its_links_do_not_depend_on_each_other() -> None:
    mine, other = Extrapolation(name="mine", fast_gain=0.5), Extrapolation(name="other", slow_gain=0.5)
    guard = guarded("guarded", [mine, other], links(96, 0), levels_db=(10.0, 20.0))
    again = guarded("guarded", [mine, other], links(96, 0), levels_db=(10.0, 20.0))
    assert guard.chosen == again.chosen and torch.equal(guard.edges, again.edges)
    test, noise = links(8, 2), torch.full((8,), 0.02)
    whole = guard.predict(test.history, noise)
    alone = torch.cat([guard.predict(test.history[i : i + 1], noise[i : i + 1]) for i in range(8)])
    assert torch.allclose(whole, alone)


def test_few_training_links_are_one_band() -> None:
    guard = guarded(
        "guarded", [Extrapolation(name="mine", slow_gain=0.0), Extrapolation(name="x")], links(1, 0)
    )
    assert guard.predict(links(4, 3).history, torch.full((4,), 0.1)).shape == (4, NUM_HORIZON, 1, 8, 64)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_decorrelation_is_that_of_the_signal(noise: float) -> None:
    """A white process has 1 (to the root of its size), a constant 0; noise of known power does not count."""
    generator = torch.Generator().manual_seed(4)

    def white(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.complex64, generator=generator)

    constant = white(16, 1, 1, 8, 32).expand(-1, NUM_SLOTS, -1, -1, -1)
    changing = white(16, NUM_SLOTS, 1, 8, 32)
    for signal, expected in ((constant, 0.0), (changing, 1.0)):
        noisy = signal + noise**0.5 * white(*signal.shape)
        power = torch.full((16,), noise)
        assert decorrelation(noisy, power).mean().item() == pytest.approx(expected, abs=0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Nothing finite for a link in ten."""

    name: str
    predictor: Predictor

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        future = self.predictor.predict(history, noise_variance).clone()
        future[::10] = torch.inf
        return future


def test_a_last_predictor_that_breaks_on_training_links_is_not_kept() -> None:
    good = Extrapolation(name="good")
    guard = guarded("guarded", [good, Broken(name="last", predictor=good)], links(32, 0), levels_db=(20.0,))
    assert guard.choices() == {"20db": ["good"]}
