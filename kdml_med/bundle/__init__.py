"""What bundle configs call, so that they need no Python of their own."""

from kdml_med.bundle.command_line import check_command_line, find_root
from kdml_med.bundle.stages import (
    describe_run,
    prepare_evaluation,
    prepare_training,
    read_description,
    save_evaluation,
    save_inference,
)

__all__ = [
    "check_command_line",
    "describe_run",
    "find_root",
    "prepare_evaluation",
    "prepare_training",
    "read_description",
    "save_evaluation",
    "save_inference",
]
