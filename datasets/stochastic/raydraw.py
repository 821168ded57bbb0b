"""Sionna's draws of TR 38.901 (steps 1 to 10), taken at the point where it would turn them into coefficients.

A ``RayRecorder`` stands in for Sionna's ``ChannelCoefficientsGenerator``: it draws the initial phases as that
does, from the same generator, and keeps what it was given; ``raysum`` does the rest.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sionna.phy.channel.tr38901 import CDL, PanelArray, Rays, Topology
from sionna.phy.channel.tr38901.channel_coefficients import ChannelCoefficientsGenerator


@dataclass(frozen=True, slots=True, kw_only=True)
class RayDraw:
    """Everything random about some drops, in Sionna's [batch, num_tx, num_rx, ...] axes.

    rays: angles in rad, [..., clusters, rays], delays in s and powers, [..., clusters]. phases: [...,
    clusters, rays, 4], of theta-theta, theta-phi, phi-theta and phi-phi. k_factor: [...], used where
    ``topology.los``. cluster_delay_spread_s: [...], None for models without sub-clusters. gain: [...],
    amplitude of path loss and shadow fading. All in the model's precision and on its device.
    """

    tx_array: PanelArray
    rx_array: PanelArray
    wavelength_m: torch.Tensor
    rays: Rays
    topology: Topology
    phases: torch.Tensor
    k_factor: torch.Tensor
    cluster_delay_spread_s: torch.Tensor | None
    gain: torch.Tensor

    def __len__(self) -> int:
        return len(self.gain)

    def __getitem__(self, drops: slice) -> "RayDraw":
        """Some of the drops."""
        batch = len(self)
        return self._changed(lambda values: values.expand(batch, *values.shape[1:])[drops])

    def double(self) -> "RayDraw":
        """The same draw, to be summed in double precision; its numbers stay those of single precision."""
        return self._changed(lambda values: values.double() if values.is_floating_point() else values)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "RayDraw":
        """Every tensor that has a row a drop, changed alike."""
        spread = self.cluster_delay_spread_s
        return dataclasses.replace(
            self,
            rays=_changed_record(self.rays, change),
            topology=_changed_record(self.topology, change),
            phases=change(self.phases),
            k_factor=change(self.k_factor),
            cluster_delay_spread_s=None if spread is None else change(spread),
            gain=change(self.gain),
        )


def _changed_record(record: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """One of Sionna's records with its tensors changed."""
    changed = copy.copy(record)
    for name, value in vars(record).items():
        if isinstance(value, torch.Tensor):
            setattr(changed, name, change(value))
    return changed


class RayRecorder(ChannelCoefficientsGenerator):  # type: ignore[misc]
    """Takes the place of Sionna's generator for one call of a model; gives coefficients of one."""

    def __call__(
        self,
        num_time_samples: int,
        sampling_frequency: float,
        k_factor: torch.Tensor,
        rays: Rays,
        topology: Topology,
        c_ds: torch.Tensor | None = None,
        debug: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the draw; what comes back passes through step 12, which leaves its gain in it."""
        phases = self._step_10(rays.aoa.shape) if rays.phases is None else rays.phases.to(self.dtype)
        self.taken = (k_factor, rays, topology, c_ds, phases)
        links = rays.aoa.shape[:3]
        ones = torch.ones(*links, 1, 1, 1, 1, dtype=self.cdtype, device=self.device)
        return ones, torch.zeros(*links, 1, dtype=self.dtype, device=self.device)


def draw_rays(model: Any, call: Callable[[int, float], tuple[torch.Tensor, torch.Tensor]]) -> RayDraw:
    """The draw behind a call of Sionna's ``model`` (CDL, UMi, UMa, RMa, InH, InF).

    call(num_time_samples, sampling_frequency) calls the model. Sionna's generator of random numbers ends up
    where its own path leaves it.
    """
    name = _generator_name(model)
    own = getattr(model, name)
    recorder = RayRecorder.__new__(RayRecorder)
    recorder.__dict__.update(own.__dict__)
    setattr(model, name, recorder)
    try:
        gain, *_ = call(1, 1.0)  # [batch, num_rx, 1, num_tx, 1, 1, 1]
    finally:
        setattr(model, name, own)
    k_factor, rays, topology, c_ds, phases = recorder.taken
    return RayDraw(
        tx_array=own._tx_array,
        rx_array=own._rx_array,
        wavelength_m=own._lambda_0,
        rays=rays,
        topology=topology,
        phases=phases,
        k_factor=k_factor,
        cluster_delay_spread_s=c_ds if own._subclustering else None,
        gain=gain[:, :, 0, :, 0, 0, 0].real.transpose(1, 2),  # [batch, num_tx, num_rx]
    )


def unsupported(model: Any) -> str | None:
    """Why the ray sum cannot stand in for Sionna's own path, in a few words; None if it can."""
    own: Any = getattr(model, _generator_name(model), None)
    if type(own) is not ChannelCoefficientsGenerator:
        return f"{type(model).__name__} has no rays, or sums them in its own way"
    for array, has_fields in (
        (own._tx_array, own._tx_array_has_element_field),
        (own._rx_array, own._rx_array_has_element_field),
    ):
        if has_fields or not isinstance(array, PanelArray):
            return f"{type(array).__name__} is no plain panel array"
    return None


def _generator_name(model: Any) -> str:
    return "_cir_gen" if isinstance(model, CDL) else "_cir_sampler"
