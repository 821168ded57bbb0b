"""The channels around edge servers: one generator's, several generators', or several ray-traced sites'.

Each kind is a list of datasets of one radio setting, so that one LAM fits all of them; the settings of two
kinds may differ. Sites are Munich, the Place de l'Etoile and a street canyon, at 3.5 GHz with Munich's array
and grid: servers then differ in streets and in the share of users in sight.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from airlam.bench.kept import kept_dataset
from airlam.bench.trained import cache_folder
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.store import ChannelDataset
from airlam.llvm import LLVM_REMEDY, good_llvm
from airlam.radio.channel import PredictionSetting
from airlam.specs import DatasetSpec, PredictionSpec, SensorsSpec, SplitSizes
from airlam.tasks.channel_prediction import DatasetLinks, LinkSource, Progress
from airlam.tasks.device_data import divide_links

GENERATOR, SITE, SPEED = "generator", "site", "speed"  # by which servers can differ
GENERATORS = ("uma_directional", "uma_omni", "umi_omni")
SITES = ("munich", "etoile", "street_canyon")
PLACES_PER_DRIVE = 10
PLACE_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerData:
    """Sources by kind (``GENERATOR``, ``SITE``) and split; skipped: kinds that are not here, and why."""

    sources: Mapping[str, Mapping[str, Sequence[LinkSource]]]
    skipped: Mapping[str, str]

    def setting(self, partition: str) -> PredictionSetting:
        """Of the servers in a partition."""
        return self.split(partition, "train")[0].setting

    def split(self, partition: str, split: str) -> Sequence[LinkSource]:
        """The sources that servers in a partition draw from: one, unless they differ by source."""
        if partition in self.sources:
            return self.sources[partition][split]
        return self.sources[GENERATOR][split][:1]

    def divided(self, partition: str, servers: Sequence[str]) -> dict[str, LinkSource]:
        """Each server's training drops."""
        sources = self.split(partition, "train")
        how = SPEED if partition == SPEED else "iid"
        parts: dict[str, LinkSource] = {}
        for kind, source in enumerate(sources):
            group = list(servers[kind :: len(sources)])
            parts |= divide_links(source, group, how, 1) if group else {}  # type: ignore[arg-type]
        return {server: parts[server] for server in servers}


def open_server_data(
    drops: SplitSizes, of_site: SplitSizes | None, prediction: PredictionSpec, stack: ExitStack, on: Progress
) -> ServerData:
    """Draws what is not in the cache. drops: of each generator; of_site: of each site, None for no sites."""

    def drawn(kind: str, specs: Mapping[str, DatasetSpec]) -> Mapping[str, Sequence[LinkSource]]:
        folder = cache_folder() / "federated"
        datasets: list[ChannelDataset] = []
        for done, (name, spec) in enumerate(specs.items()):
            on(f"drawing by {kind}", done, len(specs), name)
            datasets.append(stack.enter_context(kept_dataset(spec, folder / f"{name}.h5", on)))
        return {
            split: [DatasetLinks(dataset, split, prediction) for dataset in datasets]
            for split in ("train", "validation", "test")
        }

    sources = {GENERATOR: drawn(GENERATOR, generator_specs(drops))}
    skipped: dict[str, str] = {}
    if of_site is None:
        skipped[SITE] = "ray tracing takes longer than --quick allows"
    elif good_llvm() is None:
        skipped[SITE] = f"ray tracing needs LLVM; {LLVM_REMEDY}"
    else:
        sources[SITE] = drawn(SITE, site_specs(of_site))
    return ServerData(sources=sources, skipped=skipped)


def generator_specs(drops: SplitSizes) -> dict[str, DatasetSpec]:
    """LLM4CP's setting of three kinds, in the order of ``GENERATORS``."""
    omni = packaged_spec("llm4cp_uma_omni")
    umi = dataclasses.replace(omni, channel=dataclasses.replace(omni.channel, model="umi"))
    specs = (packaged_spec("llm4cp_uma_directional"), omni, umi)
    return {
        name: dataclasses.replace(spec, drops=drops) for name, spec in zip(GENERATORS, specs, strict=True)
    }


def site_specs(drops: SplitSizes) -> dict[str, DatasetSpec]:
    """Munich's radio at three sites, one user a drop, no sensors, places half a second apart."""
    munich = packaged_spec("munich")
    specs = {}
    for name in SITES:
        packaged = packaged_spec(name)
        assert packaged.site is not None
        specs[f"site_{name}"] = dataclasses.replace(
            munich,
            name=f"site_{name}",
            description=f"Munich's radio at {packaged.site.scene}",
            sensors=SensorsSpec(),
            site=dataclasses.replace(packaged.site, position_interval_s=PLACE_INTERVAL_S),
            shard_drops=PLACES_PER_DRIVE,
            drops=drops,
        )
    return specs
