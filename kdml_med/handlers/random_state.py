"""The random generators of this process as plain values, which checkpoints can hold and ``weights_only`` reads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of the generators of torch, of every GPU, of NumPy and of Python: numbers, tensors and lists of them."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert name == "MT19937"  # of the legacy functions, whatever other generators a program makes
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached),
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to a state; those that it does not name, and GPUs that are not there, are left alone."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "numpy" in state:
        own = state["numpy"]
        keys = own["keys"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, own["position"], own["has_gauss"], own["cached_gaussian"]))
    if "python" in state:
        own = state["python"]
        random.setstate((own["version"], tuple(own["words"].tolist()), own["gauss"]))
