"""One line per epoch on the terminal, and a progress bar inside it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from tqdm import tqdm

from kdml_med.engines.processes import is_main
from kdml_med.handlers.losses import EpochMeans
from kdml_med.handlers.metrics import UNDEFINED
from kdml_med.keys import LossTerm, NetworkName
from kdml_med.metrics.classification import METRICS
from kdml_med.program import progress_bar

logger = logging.getLogger(__name__)


class CohortProgress:
    """Shows a bar over all iterations, and logs losses and key metric at the end of every epoch.

    Args:
        evaluator: validation engine; None shows training only.
        figures: metrics of the ensemble to show beside the key metric; None for those that
            ``kdml_med.metrics.classification.METRICS`` wants in progress.
    """

    def __init__(self, evaluator: Evaluator | None = None, *, figures: Sequence[str] | None = None) -> None:
        self.evaluator = evaluator
        of_tiles = [f"tile_{name}" for name, metric in METRICS.items() if metric.progress]
        self.figures = tuple(of_tiles if figures is None else figures)
        self.bar: tqdm[Any] | None = None
        self.means = EpochMeans()
        self.started = 0.0

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer; behind the validation handler, so that the line has this epoch's metric."""
        self.means = EpochMeans.of(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_started(self, engine: Engine) -> None:
        self.started = time.monotonic()
        what = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
        done = engine.state.iteration % engine.state.epoch_length
        self.bar = progress_bar(engine.state.epoch_length, what=what, unit="batch", done=done, show=is_main())

    def _iteration_completed(self) -> None:
        if self.bar is not None:
            loss = self.means.latest.get(LossTerm.LOSS)
            if loss is not None:
                self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update()

    def _epoch_completed(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
        means = self.means.values()
        losses = "  ".join(f"{name} {value:.3f}" for name, value in means.items() if name != LossTerm.LOSS)
        logger.info(
            "epoch %d/%d  %.0f s  loss %.3f  (%s)",
            engine.state.epoch,
            engine.state.max_epochs,
            time.monotonic() - self.started,
            means[LossTerm.LOSS],
            losses,
        )
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            state = self.evaluator.state
            value = state.metrics.get(state.key_metric_name, float("nan"))
            is_best = state.best_metric_epoch == engine.state.epoch and value != UNDEFINED
            best = "best so far" if is_best else f"best {_in_words(state.best_metric)}"
            others = "".join(
                f", {name.replace('_', ' ')} "
                f"{_in_words(state.metrics.get(f'{NetworkName.ENSEMBLE}_{name}', float('nan')))}"
                for name in self.figures
            )
            logger.info("  validation: %s %s (%s)%s", state.key_metric_name, _in_words(value), best, others)


def _in_words(figure: float) -> str:
    return "not defined" if math.isnan(figure) or figure == UNDEFINED else f"{figure:.3f}"
