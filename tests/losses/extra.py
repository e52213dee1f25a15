"""A loss as a user adds one: the cohort's, and a term of one's own for every student."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdml_med.keys import LossTerm, NetworkName
from kdml_med.losses import ClassificationCohortLoss


class ExtraLoss(ClassificationCohortLoss):
    """Pulls the logits of students towards zero, with weight delta once the ramp is over."""

    def __init__(self, *weights: float, delta: float = 1.0, **settings: Any) -> None:
        super().__init__(*weights, **settings)
        self.delta = delta

    def weights(self) -> dict[str, float]:
        weights = super().weights()
        return weights | {"delta": self.delta * min(1.0, self.epoch / (self.ramp_up_epochs + 1))}

    def term_weights(self) -> dict[str, float]:
        return super().term_weights() | {"extra_pull": self.weights()["delta"]}

    def forward(self, predictions: Mapping[str, Any], target: Any) -> dict[str, Tensor]:
        terms = super().forward(predictions, target)
        for name, logits in predictions.items():
            if name != NetworkName.TEACHER:
                terms[f"{name}_extra_pull"] = logits.square().mean()
                terms[LossTerm.LOSS] = terms[LossTerm.LOSS] + self.term_weights()["extra_pull"] * logits.square().mean()
        return terms
