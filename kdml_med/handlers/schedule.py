"""The learning-rate schedule, moved on by the trainer's updates."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LRScheduler


class UpdateSchedule(LrScheduleHandler):
    """MONAI's handler for batches of which several make one update (``KDMLTrainer``'s ``accumulate``).

    Args:
        lr_scheduler: counts updates of the weights.
    """

    def __init__(self, lr_scheduler: LRScheduler) -> None:
        super().__init__(lr_scheduler, print_lr=False, epoch_level=False)

    def __call__(self, engine: Engine) -> None:
        """After a batch: one step of the schedule if the batch ended with an update."""
        if engine.updated:
            super().__call__(engine)
