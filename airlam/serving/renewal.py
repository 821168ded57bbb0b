"""LAMs exchanged while the server answers: what is under way ends with the old ones, nothing is refused.

New services are loaded beside the old and warmed between two batches; the next batch is theirs. A batch runs
on one set of services, so an answer is of the old LAM or of the new one. Both are in memory for a while;
those that lose their place, or never get it, are closed behind the batch under way.
"""

import asyncio
import logging
from collections.abc import Callable

from airlam.errors import AirlamError, SpecError
from airlam.serving.batching import NotServed
from airlam.serving.predictions import Predictions
from airlam.serving.services import PrecodingServices, Services
from airlam.tokens.beam_history import BeamScales

_log = logging.getLogger(__name__)
Load = Callable[[], Services]


class Renewal:
    """Brings in new services when it is told to, one after the other."""

    def __init__(self, serving: Predictions, load: Load) -> None:
        """load: reads the LAMs anew; runs in a thread of its own."""
        self._serving, self._load = serving, load
        self._turn = asyncio.Lock()

    async def run(self) -> bool:
        """Whether the LAMs were exchanged; the log says why they were not, and the old ones go on."""
        async with self._turn:
            found: Services | None = None
            try:
                found = await asyncio.to_thread(self._load)
                _check(self._serving.services, found)
                await self._serving.batcher.between_batches(found.warm)
            # OSError: no file; RuntimeError: torch's of tensors that do not fit; NotServed: replicas are lost
            except (AirlamError, OSError, RuntimeError, NotServed) as error:
                _log.error("the LAMs stay as they are: %s", error)
                self._serving.metrics.renewed(succeeded=False)
                if found is not None:
                    await self._retire(found)
                return False
            before, self._serving.services = self._serving.services, found
            self._serving.metrics.renewed(succeeded=True)
            _log.info("the LAMs have been exchanged")
            await self._retire(before)
        return True

    async def _retire(self, services: Services) -> None:
        """Closes services once the batch under way, which may be theirs, is done."""
        if not self._serving.batcher.draining:  # then all ends
            await self._serving.batcher.between_batches(services.close)


def _check(old: Services, new: Services) -> None:
    """SpecError where clients of the old services would not find what they know."""
    for name, setting in old.settings.items():
        if name not in new.settings:
            raise SpecError(f"LAM {name!r} is gone; restart the server to serve others")
        if new.settings[name] != setting:
            raise SpecError(
                f"LAM {name!r} is for another setting than before; restart the server to change it"
            )
    for name, scales in old.beam_settings.items():
        given = new.beam_settings.get(name)
        if given is None or _sizes(given) != _sizes(scales):
            raise SpecError(
                f"LAM {name!r} is gone or chooses of other sweeps; restart the server to change it"
            )
    if isinstance(old, PrecodingServices):
        csi = new.csi if isinstance(new, PrecodingServices) else {}
        for name in old.csi:
            if csi.get(name) != old.csi[name]:
                raise SpecError(
                    f"precoder {name!r} is gone or was trained on other CSI; restart the server to change it"
                )


def _sizes(scales: BeamScales) -> tuple[int, int, int]:
    """What clients of a LAM of beam selection know of it."""
    return scales.num_past, scales.num_ahead, scales.num_beams
