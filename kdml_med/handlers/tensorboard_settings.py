"""The settings of a run as TensorBoard's page HPARAMS shows them: few, those that were changed first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

COMPARED = (
    "version",
    "alpha",
    "beta",
    "gamma",
    "temperature",
    "learning_rate",
    "batch_size",
    "max_epochs",
    "fold",
    "seed",
)
"""Settings that are always shown, so that runs can be compared; of the others those that are not the default."""
_FILES = ("initial_weights", "teacher_checkpoint")
_TYPES = {bool: DATA_TYPE_BOOL, float: DATA_TYPE_FLOAT64, str: DATA_TYPE_STRING}


def settings_summaries(settings: Mapping[str, Any], defaults: Mapping[str, Any], *, metric: str) -> Iterator[Summary]:
    """Events that make a run a row of the page HPARAMS.

    Not those of torch, which write True as the number 1, and say of no setting that it was changed: TensorBoard then
    shows the first five of the alphabet.

    Args:
        settings: of the run, by name.
        defaults: values of those that have one, by name; a setting without is taken as the default.
        metric: tag of the scalar that runs are compared by.
    """
    values = {name: value for name, value in settings.items() if value is not None}
    changed = {name for name in values if name in defaults and values[name] != defaults[name]}
    shown = {name: _shown(name, value) for name, value in values.items() if name in changed or name in COMPARED}
    experiment = Experiment(
        hparam_infos=[
            HParamInfo(name=name, type=_TYPES[type(value)], differs=name in changed) for name, value in shown.items()
        ],
        metric_infos=[MetricInfo(name=MetricName(tag=metric))],
    )
    start = SessionStartInfo()
    for name, value in shown.items():
        field = {bool: "bool_value", float: "number_value", str: "string_value"}[type(value)]
        setattr(start.hparams[name], field, value)
    yield _summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    yield _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))
    end = SessionEndInfo(status=STATUS_SUCCESS)
    yield _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _summary(tag: str, content: HParamsPluginData) -> Summary:
    described: SummaryMetadata = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])


def _shown(name: str, value: Any) -> bool | float | str:
    if isinstance(value, bool | str):
        return Path(value).name if name in _FILES and isinstance(value, str) else value
    return float(value) if isinstance(value, int | float) else _words(value, files=name in _FILES)


def _words(value: Any, *, files: bool) -> str:
    """A list, or a network with its arguments, without the brackets and quotes of a program."""
    if isinstance(value, Mapping):
        own = {str(key): _words(part, files=files) for key, part in value.items()}
        name = own.pop("name", "")
        parts = ", ".join(f"{key}={part}" for key, part in own.items())
        return f"{name}({parts})" if name and parts else name or parts
    if isinstance(value, list | tuple):
        return ", ".join(_words(part, files=files) for part in value)
    return Path(value).name if files and isinstance(value, str) else str(value)
