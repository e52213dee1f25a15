"""How the training went: losses and validation figures over the epochs."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from kdml_med.clinical.study import Study
from kdml_med.keys import HistoryColumn, LossColumn, Task, network_order
from kdml_med.report.curves import draw_history, draw_losses
from kdml_med.report.document import Paragraph, Picture, Section
from kdml_med.report.doubts import WARNINGS
from kdml_med.report.wording import capital, metric_words
from kdml_med.runs import HISTORY_FILE, read_history

TITLE = "Training"
_MAIN = {Task.CLASSIFICATION: "{level}_auroc", Task.DETECTION: "ap50"}
_LOSS = "loss"


def training_sections(study: Study) -> list[Section]:
    """One section with curves over the epochs; none where the run left neither losses nor history."""
    pictures = [*_losses(study), *_validations(study)]
    if not pictures:
        return []
    warned: Mapping[str, str] = study.validation.metrics.get(WARNINGS, {})
    return [
        Section(
            TITLE, [Paragraph(_summary(study)), *(Paragraph(text, "Warning.") for text in warned.values()), *pictures]
        )
    ]


def _summary(study: Study) -> str:
    best = study.validation.metrics.get("best_epoch")
    chosen = (
        f"The weights of epoch {best} are used everywhere on this page: they were best on the validation split. "
        if best is not None
        else ""
    )
    biased = "Figures on the validation split are too good, because it chose the epoch."
    return f"{_trained(study)}{chosen}{_averaged(study, best)}{biased}"


def _trained(study: Study) -> str:
    """How many epochs there were: settings only say how many were asked for by the last command."""
    epochs = study.knobs.get("max_epochs")
    last = epochs if study.losses is None or study.losses.empty else int(study.losses[LossColumn.EPOCH].max())
    if last is None:
        return ""
    if epochs is not None and study.knobs.get("early_stopping") is not None and last < epochs:
        return f"Stopped early after {last} of up to {epochs} epochs. "
    return f"{last} epochs. "


def _averaged(study: Study, best: int | None) -> str:
    """What the weights are an average of, where they are one."""
    knobs = study.knobs
    if knobs.get("average") == "ema":
        return "They are exponential averages over the optimizer steps up to there. "
    if knobs.get("average") == "swa" and best is not None and best > knobs["swa_start"] * knobs["max_epochs"]:
        return "They are averages over the ends of the last epochs up to there. "
    return ""


def _losses(study: Study) -> list[Picture]:
    drawn = None if study.losses is None else draw_losses(study.losses)
    caption = "Mean of every loss term in each epoch on the training samples, not weighted: one panel for each network."
    return [] if drawn is None else [Picture("losses.png", caption, drawn)]


def _validations(study: Study) -> list[Picture]:
    """The main figure and the loss on the validation split, as history.csv has them."""
    if not (study.folder / HISTORY_FILE).is_file():
        return []
    history = read_history(study.folder)
    main = _MAIN[study.description.task].format(level=study.description.level)
    pictures = []
    for figure, words in ((main, metric_words(main.rpartition("_")[2])), (_LOSS, "loss against the labels")):
        curves = _curves(history, figure)
        if curves:
            caption = f"{capital(words)} on the validation split after each epoch that was validated."
            drawn = draw_history(curves, words)
            pictures.append(Picture(f"validation_{figure}.png", caption, drawn))
    return pictures


def _curves(history: pd.DataFrame, figure: str) -> Mapping[str, pd.DataFrame]:
    """Epoch and value of one figure, by network."""
    rows = history[history[HistoryColumn.FIGURE] == figure]
    columns = {HistoryColumn.EPOCH.value: "epoch", HistoryColumn.VALUE.value: "value"}
    names = sorted(rows[HistoryColumn.NETWORK].unique(), key=network_order)
    return {
        str(name): rows.loc[rows[HistoryColumn.NETWORK] == name, list(columns)].rename(columns=columns)
        for name in names
    }
