"""The end of a training that validations no longer find better."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping as _Rule
from monai.engines import Evaluator, Trainer

from kdml_med.engines import processes
from kdml_med.handlers.metrics import UNDEFINED

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Ends a training when the key metric was not better than before in some validations in a row.

    Better is a higher value: validations that are only as good count, unlike for the best weights, of which the later
    ones are kept. Those whose metric is not defined say nothing, and do not count. The counting itself is ignite's.
    Attach it behind the handler that runs the validation and before the one that saves the checkpoint, of which its
    count is a part: a run that has stopped stops again at once.

    Args:
        evaluator: validation engine.
        patience: validations; None never stops.
    """

    def __init__(self, evaluator: Evaluator, patience: int | None = None) -> None:
        self.evaluator, self.patience = evaluator, patience
        self.rule: _Rule | None = None

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        if self.patience is not None:
            self.rule = _Rule(self.patience, self._value, engine)
            self.rule.logger.setLevel(logging.WARNING)  # it is said here, in words of this project
            engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started, self.rule)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed, self.rule)

    def state_dict(self) -> dict[str, Any]:
        """Count and best value so far; empty where it never stops."""
        return {} if self.rule is None else dict(self.rule.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave, in a trainer that has started.

        Raises:
            ValueError: it is something else.
        """
        if self.rule is None or not state:
            return
        self.rule.load_state_dict(state)
        if self.rule.counter >= self.rule.patience:
            self.rule.trainer.terminate()
            logger.info("Stopped early before: raise or leave out early_stopping to go on.")

    def _value(self, _: Engine) -> float:
        state = self.evaluator.state
        return float(state.metrics[state.key_metric_name])

    def _epoch_started(self, rule: _Rule) -> None:
        # Of a training that went on until now without an end.
        if rule.best_score is None and self.evaluator.state.best_metric_epoch > 0:
            rule.best_score = float(self.evaluator.state.best_metric)

    def _epoch_completed(self, engine: Engine, rule: _Rule) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return  # it was not validated
        # Only in the main process is the metric that of all samples for certain.
        if processes.is_main() and self._value(engine) != UNDEFINED:
            rule(engine)
        if processes.from_main(rule.counter >= rule.patience):
            engine.terminate()
            state = self.evaluator.state
            logger.info(
                "Stopped early: %s was not above %.3f in the last %d validations.",
                state.key_metric_name,
                state.best_metric,
                rule.patience,
            )
