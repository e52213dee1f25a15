"""The network that MONAI's own exports ask a config for, with metadata that are the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from kdml_med.bundle.workflow import innermost
from kdml_med.deploy.model_metadata import METADATA_FILE, network_metadata, write_network_metadata
from kdml_med.errors import InputError
from kdml_med.runs import RunDescription, load_network

_DESCRIBES = ("label_classes", "network_data_format")


def network_to_export(run_dir: str, name: str) -> nn.Module:
    """A network of a run with random weights, for ``ckpt_export``, ``onnx_export`` and ``trt_export``.

    These take classes and input size from a metadata file. One that says other things than the run would get into the
    exported file, or give it the input of another run: it is refused.

    Args:
        run_dir: folder of the run.
        name: of the network.

    Raises:
        InputError: no such run or network, or the metadata are not the run's.
    """
    run = RunDescription.read(run_dir)
    expected, own = network_metadata(run), Path(run_dir) / METADATA_FILE
    given = _given_metadata()
    for key in _DESCRIBES:
        if given and given.get(key) != expected[key]:
            if not own.is_file():  # a run of an earlier version
                write_network_metadata(run_dir, run)
            raise InputError(
                f"the metadata given do not describe the run {run_dir}: {key} is other than its classes "
                f"{', '.join(run.classes)} and its input of {run.image_size} px want. Use --meta_file {own}."
            )
    return load_network(run_dir, name, trained=False)


def _given_metadata() -> dict[str, Any]:
    """Metadata that the program in which a config is read was given; empty without any."""
    parser = innermost(ConfigParser)
    content: Any = {} if parser is None else parser.get(ConfigParser.meta_key, {})
    return dict(content or {})
