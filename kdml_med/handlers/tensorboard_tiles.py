"""Example tiles with the answers of all networks, for TensorBoard."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdml_med.keys import NetworkName, network_order
from kdml_med.report.figures import INK, label_text, style

_TITLE_LETTERS, _TEXT_LETTERS = 28, 36


def tile_figures(
    dataset: Any, predictions: pd.DataFrame, *, count: int = 8
) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Example tiles with their label and every network's probability of the positive class.

    Half are spread evenly over the split and stay the same from epoch to epoch; the others are the tiles on which the
    ensemble is most wrong now. A wrong decision has a red title.

    Args:
        dataset: gives ``read(index)`` (uint8 [height, width, 3]) and ``classes``; samples in the order of the tiles.
        predictions: columns of ``PredictionColumn``.
        count: number of tiles.

    Returns:
        uint8, [height, width, 3], by tag.
    """
    # Rows of one network stand in loading order, which is the order of the dataset.
    wide = {str(name): rows.reset_index(drop=True) for name, rows in predictions.groupby("network", sort=False)}
    ensemble = wide[NetworkName.ENSEMBLE.value]
    fixed = np.linspace(0, len(ensemble) - 1, min(count // 2, len(ensemble))).round().astype(int).tolist()
    error = (ensemble["probability"] - ensemble["label"]).abs().where(ensemble["label"] >= 0, 0.0)
    worst = [int(index) for index in error.sort_values(ascending=False, kind="stable").index if index not in fixed]
    tags = {f"val_tiles_spread/{number}": index for number, index in enumerate(dict.fromkeys(fixed), start=1)}
    tags |= {f"val_tiles_worst/{number}": index for number, index in enumerate(worst[: count - len(tags)], start=1)}
    names = sorted(wide, key=network_order)
    positive = dataset.classes[-1] if dataset.classes else "positive"
    figures = {}
    for tag, index in tags.items():
        label = int(ensemble["label"][index])
        truth = dataset.classes[label] if label >= 0 else "no label"
        about = textwrap.wrap(label_text(f"probability of {positive}"), _TEXT_LETTERS)
        lines = [*about, *(f"{name:<10}{wide[name]['probability'][index]:.2f}" for name in names)]
        figures[tag] = _tile_figure(
            dataset.read(index),
            title=f"{label_text(truth)} · {label_text(str(ensemble['patient_id'][index]))}",
            lines=lines,
            wrong=label >= 0 and bool(error[index] > 0.5),
        )
    return figures


def _tile_figure(
    tile: np.ndarray[Any, np.dtype[np.uint8]], *, title: str, lines: Sequence[str], wrong: bool
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    titles = textwrap.wrap(title, _TITLE_LETTERS)
    with style():  # somebody's words: no formulas are typeset, and no font has all letters
        # As wide as TensorBoard's image cards, so that the text is readable without enlarging.
        height = 2.82 + 0.2 * len(titles) + 0.17 * (len(lines) - 1)
        figure = Figure(figsize=(2.5, height), dpi=110, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.set_axis_off()
        axis.imshow(tile)
        axis.set_title("\n".join(titles), fontsize=10, color="firebrick" if wrong else INK)
        figure.supxlabel("\n".join(lines), fontsize=8, family="monospace", x=0.08, ha="left", ma="left")
        canvas.draw()
    image: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image
