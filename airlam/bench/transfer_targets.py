"""Where a LAM trained on Sionna's UMa is tried: UMi, ray-traced Munich, a QuaDRiGa set."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airlam.bench import trained
from airlam.bench.kept import kept_dataset
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.exchange import import_links, load_quadriga
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.llvm import LLVM_REMEDY, good_llvm
from airlam.specs import DatasetSpec, SensorsSpec, SplitSizes
from airlam.tasks.channel_prediction import DatasetLinks, LinkSource, Progress

UMI, MUNICH, QUADRIGA = "umi_nlos", "munich", "quadriga"
PLACES_PER_DRIVE = 10  # of the ray-traced site
PLACE_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the benchmark is."""

    name: str
    shots: tuple[int, ...]  # drops that are tuned on, held-out ones included
    test: int  # drops of UMi
    test_drives: int  # of Munich, each of PLACES_PER_DRIVE drops
    steps_per_root_drop: float  # of fine-tuning


FULL = Scale(name="full", shots=(10, 100, 1000), test=512, test_drives=30, steps_per_root_drop=20.0)
QUICK = Scale(name="quick", shots=(5, 10), test=8, test_drives=0, steps_per_root_drop=4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the LAM is tried: drops to tune on, and test drops.

    few_group, test_group: int64 [num_links], equal for links that are not independent (places on one drive):
    such are held out together, and intervals are over groups.
    """

    name: str
    about: str
    few: LinkSource
    test: LinkSource
    few_group: NDArray[np.int64]
    test_group: NDArray[np.int64]
    checksums: tuple[str, ...]  # of the drops to tune on


def umi_spec(sizes: SplitSizes) -> DatasetSpec:
    """LLM4CP's setting in UMi: base station at 10 m, no line of sight, the uplink band."""
    packaged = trained.dataset_spec("uma_omni", sizes, seed=21)
    return replace(
        packaged,
        name=UMI,
        description="LLM4CP's setting in 38.901 UMi without line of sight",
        channel=replace(packaged.channel, model="umi"),
        placement=replace(packaged.placement, base_station_height_m=10.0),
    )


def munich_spec(sizes: SplitSizes) -> DatasetSpec:
    """The packaged site without sensors, its places half a second apart: many short drives instead of few."""
    packaged = packaged_spec("munich")
    assert packaged.site is not None
    return replace(
        packaged,
        description="Ray-traced Munich at 3.5 GHz, users and cars driving",
        seed=22,
        sensors=SensorsSpec(),
        site=replace(packaged.site, position_interval_s=PLACE_INTERVAL_S),
        shard_drops=PLACES_PER_DRIVE,
        drops=sizes,
    )


def find_targets(
    scale: Scale, data: Path | None, stack: ExitStack, on_progress: Progress
) -> tuple[list[Target], dict[str, str]]:
    """What can be tried here; and what cannot, with the reason."""
    most, skipped = scale.shots[-1], {}
    folder = trained.cache_folder() / "transfer" / "datasets"

    def drawn(spec: DatasetSpec) -> ChannelDataset:
        path = folder / f"{spec.name}_{scale.name}.h5"
        return stack.enter_context(kept_dataset(spec, path, on_progress))

    umi = drawn(umi_spec(SplitSizes(train=most, validation=0, test=scale.test)))
    targets = [_target(UMI, umi, umi)]
    if not scale.test_drives:
        skipped[MUNICH] = "ray tracing takes longer than --quick allows"
    elif good_llvm() is None:
        skipped[MUNICH] = f"ray tracing needs LLVM; {LLVM_REMEDY}"
    else:
        test = scale.test_drives * PLACES_PER_DRIVE
        munich = drawn(munich_spec(SplitSizes(train=most, validation=0, test=test)))
        targets.append(_target(MUNICH, munich, munich))
    if data is None:
        skipped[QUADRIGA] = "give its *_dev.npz by --data, with its *_train.npz beside it"
    else:
        targets.append(
            _target(QUADRIGA, *(_imported(*pair, stack) for pair in _quadriga_files(data, folder)))
        )
    return targets, skipped


def _quadriga_files(data: Path, folder: Path) -> list[tuple[Path, str, Path]]:
    """Foreign file, split and dataset: of the drops to tune on, and of the test drops."""
    beside = data.with_name(data.name.replace("_dev", "_train").replace("_test", "_train"))
    if beside == data or not beside.exists():
        raise DataError(
            f"{beside} is not there; few-shot drops are taken from it: give a *_dev.npz or *_test.npz with "
            "its *_train.npz beside it"
        )
    return [(beside, "train", folder / "quadriga_train.h5"), (data, "test", folder / "quadriga_test.h5")]


def _imported(source: Path, split: str, path: Path, stack: ExitStack) -> ChannelDataset:
    """A foreign file as a dataset of ours, imported anew each time: its content is what counts."""
    import_links(load_quadriga(source), path, split=split, overwrite=True)
    return stack.enter_context(ChannelDataset.open(path))


def _target(name: str, few: ChannelDataset, test: ChannelDataset) -> Target:
    """Links of a dataset's train split to tune on, and of a dataset's test split."""
    few_links, test_links = (
        DatasetLinks(dataset, split, trained.PREDICTION)
        for dataset, split in ((few, "train"), (test, "test"))
    )
    return Target(
        name=name,
        about=test.spec.description,
        few=few_links,
        test=test_links,
        few_group=_groups(few.spec, len(few_links)),
        test_group=_groups(test.spec, len(test_links)),
        checksums=few.shard_checksums("train"),
    )


def _groups(spec: DatasetSpec, num_links: int) -> NDArray[np.int64]:
    """The drive of each place of a ray-traced site; elsewhere each link is a drop of its own."""
    return np.arange(num_links) // (spec.shard_drops if spec.channel.is_ray_traced else 1)
