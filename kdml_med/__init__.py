"""Online knowledge distillation with peer-to-peer mutual learning for small medical image models, on MONAI.

``train``, ``evaluate``, ``write_report``, ``predict``, ``export`` and ``load_run`` are those of ``kdml_med.api``. They
are fetched when they are first used, so that importing kdml_med takes no time, and preparing data needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Prediction", "Run", "__version__", "evaluate", "export", "load_run", "predict", "train", "write_report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("kdml_med.api"), name)
    raise AttributeError(f"module 'kdml_med' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
