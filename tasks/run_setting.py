"""What a run's LAM predicts from and to, kept in the run's folder: who has the folder needs no dataset."""

from pathlib import Path

from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import whole_file
from airlam.radio.channel import PredictionSetting
from airlam.specs import RunSpec, read_spec, spec_to_toml

SETTING_FILE = "setting.toml"


def write_setting(folder: Path, setting: PredictionSetting) -> None:
    """Keeps arrays, grid, times and top Doppler of a run beside its LAM."""
    with whole_file(folder / SETTING_FILE) as temporary:
        temporary.write_text(spec_to_toml(setting))


def read_setting(folder: Path, spec: RunSpec) -> PredictionSetting:
    """The setting of a run's folder; of a folder that holds none, that of the run's dataset.

    DataError where neither is there; SpecError where the file is damaged.
    """
    path = folder / SETTING_FILE
    if path.is_file():
        return read_spec(PredictionSetting, path)
    own = spec.prediction
    try:
        with ChannelDataset.open(spec.dataset) as dataset:
            return PredictionSetting.from_dataset(dataset.spec, own.num_history, own.num_horizon, own.duplex)
    except DataError as error:
        raise DataError(
            f"{folder} holds no {SETTING_FILE}, as runs of older versions do, and its dataset does not tell "
            f"({error}); bring the dataset back, or fine-tune again"
        ) from None
