"""CSI as patches of its angle-delay image: a token holds neighbouring bins at every slot of the history.

Needs no knowledge of propagation beyond the two Fourier transforms, so it fits any array and grid.
"""

import math

import torch
from einops import rearrange

from airlam.radio.channel import PredictionSetting
from airlam.tokens.base import TokenBatch

_SMALLEST_SCALE = 1e-20  # a link of exact zeros stays zeros


class PatchTokenizer:
    """CSI to patch tokens with an exact inverse (``inverse``); implements ``CsiTokenizer``.

    The history is divided by its root mean square, taken to angle and delay by unitary transforms, and cut
    into patches of ``ports_per_patch`` x ``taps_per_patch`` bins, each user antenna apart. Patches at the
    upper edges are filled with zeros. Features of a token: the real and imaginary parts of its bins at each
    slot, then log10 of the noise variance relative to the history's power.

    Patches grow, alternating between ports and taps, until at most ``max_tokens`` are left.
    """

    def __init__(self, setting: PredictionSetting, *, max_tokens: int = 64) -> None:
        self.setting = setting
        self.num_ports = setting.base_station.num_ports
        self.num_history_taps = len(setting.history_frequencies_hz)
        self.num_target_taps = len(setting.target_frequencies_hz)
        self.ports_per_patch, self.taps_per_patch = _patch_size(
            setting.num_user_antennas, self.num_ports, self.num_history_taps, max_tokens
        )
        self.num_port_patches = math.ceil(self.num_ports / self.ports_per_patch)
        self.num_tap_patches = math.ceil(self.num_history_taps / self.taps_per_patch)
        # the target's image has as many patches, so that each token predicts its own region
        self.target_taps_per_patch = math.ceil(self.num_target_taps / self.num_tap_patches)
        self.num_tokens = setting.num_user_antennas * self.num_port_patches * self.num_tap_patches
        self.history_patch_bins = self.ports_per_patch * self.taps_per_patch
        self.target_patch_bins = self.ports_per_patch * self.target_taps_per_patch
        self.num_features = 2 * setting.num_history * self.history_patch_bins + 1

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """Tokens of a noisy history.

        history: complex64 [batch, num_history, num_user_ant, num_bs_ant, num_history_subcarriers].
        noise_variance: float32 [batch], E|n|^2 of each coefficient.
        Context: ``scale`` float32 [batch], amplitude that the history was divided by; ``patches`` complex64
        [batch, num_tokens, num_history, history_patch_bins].
        """
        scale = history.abs().square().mean(dim=(1, 2, 3, 4)).sqrt().clamp_min(_SMALLEST_SCALE)  # [batch]
        patches = self.to_patches(history / scale[:, None, None, None, None], self.taps_per_patch)
        level = torch.log10((noise_variance / scale.square()).clamp(1e-6, 1e3))  # [batch]
        features = torch.cat(
            [
                rearrange(torch.view_as_real(patches), "b n t d part -> b n (t d part)"),
                level[:, None, None].expand(-1, patches.shape[1], 1),
            ],
            dim=-1,
        )  # [batch, num_tokens, num_features]
        return TokenBatch(
            features=features,
            mask=torch.ones(features.shape[:2], dtype=torch.bool, device=features.device),
            context={"scale": scale, "patches": patches},
        )

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """The tokens with ``target`` in their context: the clean future's patches over the history's scale.

        future: complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
        """
        scale = tokens.context["scale"][:, None, None, None, None]
        target = self.to_patches(future / scale, self.target_taps_per_patch)
        return TokenBatch(
            features=tokens.features, mask=tokens.mask, context={**tokens.context, "target": target}
        )

    def inverse(self, tokens: TokenBatch) -> torch.Tensor:
        """The history that the tokens came from: complex64, shaped as ``tokenise`` takes it."""
        parts = rearrange(
            tokens.features[..., :-1], "b n (t d part) -> b n t d part", t=self.setting.num_history, part=2
        )
        history = self.from_patches(
            torch.view_as_complex(parts.contiguous()), self.taps_per_patch, self.num_history_taps
        )
        return history * tokens.context["scale"][:, None, None, None, None]

    def to_patches(self, channel: torch.Tensor, taps_per_patch: int) -> torch.Tensor:
        """Angle-delay patches of a channel.

        channel: complex64 [batch, num_slots, num_user_ant, num_bs_ant, num_subcarriers].
        Returns complex64 [batch, num_tokens, num_slots, ports_per_patch * taps_per_patch].
        """
        image = torch.fft.ifft(channel, norm="ortho")  # [batch, slots, user_ant, bs_ant, taps]
        image = rearrange(image, "b t u (pol c r) f -> b t u pol c r f", **self._array_axes)
        image = torch.fft.fft2(image, dim=(-3, -2), norm="ortho")
        image = rearrange(image, "b t u pol c r f -> b t u (pol c r) f")
        missing_ports = self.num_port_patches * self.ports_per_patch - self.num_ports
        missing_taps = self.num_tap_patches * taps_per_patch - channel.shape[-1]
        image = torch.nn.functional.pad(image, (0, missing_taps, 0, missing_ports))
        return rearrange(
            image, "b t u (np p) (nf f) -> b (u np nf) t (p f)", p=self.ports_per_patch, f=taps_per_patch
        )

    def from_patches(self, patches: torch.Tensor, taps_per_patch: int, num_taps: int) -> torch.Tensor:
        """The channel whose patches these are; the filling is dropped. Inverse of ``to_patches``."""
        image = rearrange(
            patches,
            "b (u np nf) t (p f) -> b t u (np p) (nf f)",
            np=self.num_port_patches,
            nf=self.num_tap_patches,
            p=self.ports_per_patch,
            f=taps_per_patch,
        )[..., : self.num_ports, :num_taps]  # [batch, slots, user_ant, bs_ant, taps]
        image = rearrange(image, "b t u (pol c r) f -> b t u pol c r f", **self._array_axes)
        image = torch.fft.ifft2(image, dim=(-3, -2), norm="ortho")
        image = rearrange(image, "b t u pol c r f -> b t u (pol c r) f")
        channel: torch.Tensor = torch.fft.fft(image, norm="ortho")  # [batch, slots, user_ant, bs_ant, f]
        return channel

    def target_bins(self) -> torch.Tensor:
        """Which bins of the target's patches are no filling: bool [num_tokens, target_patch_bins]."""
        setting = self.setting
        shape = (1, 1, setting.num_user_antennas, self.num_port_patches * self.ports_per_patch)
        real = torch.zeros(*shape, self.num_tap_patches * self.target_taps_per_patch, dtype=torch.bool)
        real[..., : self.num_ports, : self.num_target_taps] = True
        return rearrange(
            real,
            "1 1 u (np p) (nf f) -> (u np nf) (p f)",
            p=self.ports_per_patch,
            f=self.target_taps_per_patch,
        )

    @property
    def _array_axes(self) -> dict[str, int]:
        array = self.setting.base_station
        return {"pol": array.num_polarizations, "c": array.num_cols}


def _patch_size(num_user_antennas: int, num_ports: int, num_taps: int, max_tokens: int) -> tuple[int, int]:
    """The smallest near-square patch that leaves at most ``max_tokens``, or the whole image of an antenna."""
    ports, taps = 1, 1
    while num_user_antennas * math.ceil(num_ports / ports) * math.ceil(num_taps / taps) > max_tokens:
        if ports >= num_ports and taps >= num_taps:
            break
        if taps >= num_taps or (ports <= taps and ports < num_ports):
            ports = min(2 * ports, num_ports)
        else:
            taps = min(2 * taps, num_taps)
    return ports, taps
