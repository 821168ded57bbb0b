"""A user's recent measurements, kept at the server so that each slot sends only the new one.

A session is bounded (the LAM's history, no more) and expires when it has not been used for a while.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

import torch

from airlam.radio.channel import PredictionSetting
from airlam.serving.batching import NotServed
from airlam.serving.measurement import Measurement, slot_shape


class SessionsFull(NotServed):
    """As many users as may have a session."""


class SlotRefused(NotServed):
    """A slot that came before or has been taken already."""


class Session:
    """The last slots of one user's channel, for one LAM."""

    def __init__(self, lam: str, setting: PredictionSetting) -> None:
        self.lam = lam
        self.num_history = setting.num_history
        self.num_slots = 0  # that are there; the history is whole at num_history
        self.last_slot: int | None = None
        self._history = torch.zeros(slot_shape(setting, setting.num_history), dtype=torch.complex64)
        self._variance = torch.zeros(setting.num_history)

    @property
    def is_whole(self) -> bool:
        """Whether there are slots enough to predict from."""
        return self.num_slots == self.num_history

    def append(self, channel: torch.Tensor, noise_variance: float, slot: int | None = None) -> None:
        """Takes a slot's measurement, complex64 [num_user_ant, num_bs_ant, num_history_subcarriers].

        slot: its number, where the user counts. After a gap the history starts anew, since a LAM takes slots
        in equal steps; a slot that is not after the last is refused.
        """
        if slot is not None and self.last_slot is not None:
            if slot <= self.last_slot:
                raise SlotRefused(f"slot {slot} is not after slot {self.last_slot}, the last one taken")
            if slot > self.last_slot + 1:
                self.num_slots = 0
        self.last_slot = slot
        self._history = torch.cat([self._history[1:], channel[None]])  # [num_history, user, bs, subcarriers]
        self._variance = torch.cat([self._variance[1:], torch.tensor([noise_variance])])  # [num_history]
        self.num_slots = min(self.num_slots + 1, self.num_history)

    def measurement(self) -> Measurement:
        """The whole history as one link; the noise variance is the mean over its slots."""
        return Measurement(
            lam=self.lam, history=self._history[None], noise_variance=self._variance.mean().reshape(1)
        )


class Sessions:
    """Sessions by name; names are drawn so that nobody guesses another's."""

    def __init__(
        self, *, max_sessions: int, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max, self._idle_s, self._clock = max_sessions, idle_s, clock
        self._held: OrderedDict[str, tuple[float, Session]] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        self._forget_idle()
        return len(self._held)

    def open(self, lam: str, setting: PredictionSetting) -> str:
        """A new session's name; SessionsFull where there are too many."""
        self._forget_idle()
        if len(self._held) >= self._max:
            raise SessionsFull(f"all {self._max} sessions are taken; close one, or wait until one expires")
        name = secrets.token_urlsafe(16)
        self._held[name] = self._clock(), Session(lam, setting)
        return name

    def get(self, name: str) -> Session | None:
        """The session, which has been used now; None where there is none (any more)."""
        self._forget_idle()
        if name not in self._held:
            return None
        session = self._held.pop(name)[1]
        self._held[name] = self._clock(), session
        return session

    def close(self, name: str) -> bool:
        """Forgets a session; whether there was one."""
        return self._held.pop(name, None) is not None

    def _forget_idle(self) -> None:
        oldest_s = self._clock() - self._idle_s
        while self._held and next(iter(self._held.values()))[0] < oldest_s:
            self._held.popitem(last=False)
