"""Which patients train, validate and test; and the gate that keeps one patient from doing two of these."""

from kdml_med.splits.frozen import (
    SPLIT_COLUMNS,
    assign_splits,
    check_replaceable,
    check_splits,
    describe_splits,
    freeze_splits,
    has_folds,
    has_splits,
    read_splits,
)
from kdml_med.splits.making import DEFAULT_FRACTIONS, check_request, make_splits, required_classes

__all__ = [
    "DEFAULT_FRACTIONS",
    "SPLIT_COLUMNS",
    "assign_splits",
    "check_replaceable",
    "check_request",
    "check_splits",
    "describe_splits",
    "freeze_splits",
    "has_folds",
    "has_splits",
    "make_splits",
    "read_splits",
    "required_classes",
]
