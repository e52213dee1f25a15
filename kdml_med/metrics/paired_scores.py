"""What one network said on a test set, with its statistic under weightings of the samples: what ``paired`` compares.

Samples are sorted by id, so that no figure depends on the order in which they were loaded. Where the test set was
covered by the networks of several folds, a sample's stratum is the fold it was tested in: networks of different folds
are calibrated differently, and their scores are never ranked in one list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from kdml_med.metrics import box_matching
from kdml_med.metrics.bootstrap import weighted_pairs
from kdml_med.metrics.box_matching import Floats, Group, Indices, Matches
from kdml_med.metrics.detection import average_precision
from kdml_med.metrics.inputs import as_binary

Column = npt.NDArray[Any]
Weights = npt.NDArray[np.int64]
DetectionMetric = Literal["ap50", "ap75", "ap"]

_IOU_THRESHOLDS: dict[str, tuple[float, ...]] = {
    "ap50": (0.5,),
    "ap75": (0.75,),
    "ap": box_matching.COCO_IOU_THRESHOLDS,
}


class Scores(Protocol):
    """One network on one test set; the columns have one entry for each sample, [samples]."""

    @property
    def statistic(self) -> str:
        """Name of what ``value`` computes."""

    @property
    def sample_ids(self) -> Column:
        """Rising, each once."""

    @property
    def truth(self) -> Column:
        """What is known about the sample; the same for all networks that are compared."""

    @property
    def units(self) -> Column:
        """What is resampled, and swapped between arms, as a whole: the patient or sequence."""

    @property
    def strata(self) -> Column:
        """Test fold; one value for all where there are no folds."""

    @property
    def counted(self) -> tuple[Column, ...]:
        """What the statistic is divided by, each [samples], above 0 where a sample counts.

        Where one of them is of a single unit, resampling units says nothing.
        """

    @property
    def elements(self) -> int:
        """Numbers that ``value`` holds for each weighting; decides how many are computed at once."""

    def value(self, weights: Weights) -> Floats:
        """The statistic when each sample counts so often.

        Args:
            weights: [weightings, samples], not negative.

        Returns:
            [weightings]; NaN where it is not defined.
        """

    def pooled(self, other: Self) -> Self:
        """The samples of both networks, 2 · [samples], first the own ones.

        Under weights 1 − m and m, side by side, its value is that of a network that says what ``other`` says about the
        samples with m = 1. Where only order counts, scores are replaced by their ranks within network and stratum,
        because networks are calibrated differently; that leaves the value of each network alone as it is.
        """

    def parts(self, other: Self) -> Floats | None:
        """What each sample adds to the own value minus that of ``other``, [samples].

        When the two networks swap what they say about a sample (as ``pooled`` does), its part turns its sign and all
        others stay. None where the difference is no such sum.
        """


@dataclass(frozen=True)
class ClassificationScores:
    """Probabilities of one network; the statistic is the AUROC of pairs within strata.

    It is the number of pairs (a positive and a negative sample of one stratum) in the right order, ties as one half,
    by the number of all such pairs. Make it with ``of``.
    """

    sample_ids: Column
    truth: npt.NDArray[np.bool_]
    probabilities: Floats
    units: Column
    strata: Column
    statistic: str = "auroc"

    @classmethod
    def of(
        cls,
        sample_ids: npt.ArrayLike,
        labels: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        *,
        units: npt.ArrayLike | None = None,
        strata: npt.ArrayLike | None = None,
    ) -> Self:
        """Check and sort the columns; all [samples].

        Args:
            sample_ids: each once.
            labels: 0 or 1.
            probabilities: of class 1; a NaN makes every value NaN.
            units: patient of each sample; None when each sample is its own.
            strata: test fold of each sample; None when there are none.

        Raises:
            ValueError: no samples, lengths differ, an id occurs twice, a unit or a stratum is missing, or a label is
                neither 0 nor 1.
        """
        truth, scores = as_binary(labels, probabilities)
        ids = _column("sample_ids", sample_ids, len(truth))
        order = _order(ids)
        own = ids if units is None else _column("units", units, len(truth))
        folds = np.zeros(len(truth), dtype=object) if strata is None else _column("strata", strata, len(truth))
        return cls(ids[order], truth[order], scores[order], own[order], folds[order])

    @property
    def counted(self) -> tuple[Column, ...]:
        """Positives and negatives, each [samples]."""
        return self.truth, ~self.truth

    @property
    def elements(self) -> int:
        """[samples]."""
        return len(self.truth)

    def value(self, weights: Weights) -> Floats:
        """AUROC of pairs within strata, [weightings]; NaN where no stratum has both classes."""
        won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        if not np.isnan(self.probabilities).any():
            for rows in _rows_of(self.strata):
                own = weighted_pairs(self.truth[rows], self.probabilities[rows], weights[:, rows])
                won, pairs = won + own[0], pairs + own[1]
        return _ratio(won, pairs)

    def pooled(self, other: Self) -> Self:
        """Both networks, see ``Scores.pooled``."""
        return type(self)(
            np.concatenate([self.sample_ids, other.sample_ids]),
            np.concatenate([self.truth, other.truth]),
            np.concatenate([self._exchanged(), other._exchanged()]),
            np.concatenate([self.units, other.units]),
            np.concatenate([self.strata, other.strata]),
        )

    def parts(self, other: Self) -> Floats | None:
        """See ``Scores.parts``.

        The value of pooled networks is a quadratic form of the weights, 1 − m and m. With the signs s = 1 − 2m it has a
        constant, a linear and a quadratic term; a swap of all samples turns the signs, so that only the linear term is
        left in the difference of the two networks. A sample's factor there is the number of its pairs, with all samples
        of both networks, that are in the right order, of the one network minus of the other.
        """
        won, pairs = np.zeros(len(self.truth)), 0
        own, others = self._exchanged(), other._exchanged()
        for rows in _rows_of(self.strata):
            truth, both = self.truth[rows], np.concatenate([own[rows], others[rows]])
            for kind, sign in ((True, 1), (False, -1)):
                mine, against = np.tile(truth == kind, 2), np.tile(truth != kind, 2)
                rivals = np.sort(both[against])
                left, right = (np.searchsorted(rivals, both[mine], side) for side in ("left", "right"))
                # Rivals below and half of those that tie; of a negative those above, which is their number minus that.
                first, second = np.split(sign * (left + right) / 2, 2)
                won[rows[truth == kind]] = (first - second) / 2
            pairs += int(truth.sum()) * int((~truth).sum())
        return won / pairs

    def _exchanged(self) -> Floats:
        """What is said about the samples, as it can stand beside what another network says."""
        return self._ranks()

    def _ranks(self) -> Floats:
        """Mid-ranks within the stratum, between 0 and 1."""
        ranks = np.empty(len(self.truth))
        for rows in _rows_of(self.strata):
            ranks[rows] = (rankdata(self.probabilities[rows]) - 0.5) / len(rows)
        return ranks


@dataclass(frozen=True)
class BrierScores(ClassificationScores):
    """Probabilities of one network; the statistic is their Brier score, over the samples of all strata.

    It is about the probabilities themselves, so that they are exchanged between networks as they are.
    """

    statistic: str = "brier"

    @property
    def counted(self) -> tuple[Column, ...]:
        """All samples."""
        return (np.ones(len(self.truth), dtype=np.bool_),)

    def value(self, weights: Weights) -> Floats:
        """Weighted mean of the squared differences, [weightings]; NaN without weight."""
        errors = (self.probabilities - self.truth) ** 2
        return _ratio(weights @ errors, weights.sum(axis=1).astype(np.float64))

    def parts(self, other: Self) -> Floats | None:
        """See ``Scores.parts``: the own squared difference minus that of the other network, by their number."""
        errors, others = ((one.probabilities - one.truth) ** 2 for one in (self, other))
        return (errors - others) / len(errors)

    def _exchanged(self) -> Floats:
        return self.probabilities


@dataclass(frozen=True)
class DetectionScores:
    """Boxes that one network detected; the statistic is COCO's average precision.

    With strata it is the mean of their average precisions, weighted by their annotated boxes. Make it with ``of``.

    Attributes:
        truth: annotated boxes of each frame, [frames].
        folds: of each stratum its frames, rising, and the detections there.
        usable: whether all scores and corners are numbers; every value is NaN otherwise.
    """

    sample_ids: Column
    truth: Indices
    units: Column
    strata: Column
    statistic: str
    folds: tuple[tuple[Indices, Matches], ...]
    usable: bool = True

    @classmethod
    def of(
        cls,
        frames: pd.DataFrame,
        detections: pd.DataFrame,
        *,
        metric: DetectionMetric = "ap50",
        group: Group = "sequence",
        strata: npt.ArrayLike | None = None,
    ) -> DetectionScores:
        """Match the detections of one network.

        Args:
            frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``; those without a
                label are left out.
            detections: columns of ``DetectionColumn``, of one network.
            metric: average precision at an IoU of 0.5 or 0.75, or the mean over 0.5, 0.55, …, 0.95.
            group: what is resampled. "sequence" resamples frames where each frame is its own sequence.
            strata: test fold of each row of ``frames``; None when there are none.

        Raises:
            ValueError: unknown metric or group, no frame has a label, a stratum is missing, or as for ``read_frames``
                and ``match_detections``.
        """
        if metric not in get_args(DetectionMetric):
            raise ValueError(f"metric {metric!r}: expected one of {list(get_args(DetectionMetric))}.")
        truth = box_matching.read_frames(frames)
        _order(truth.sample_ids)
        units = _column("units", truth.groups(group), len(truth.sample_ids))
        folds = np.zeros(len(truth.sample_ids), dtype=object)
        if strata is not None:
            fold_of = pd.Series(_column("strata", strata, len(frames)), index=frames["sample_id"])
            folds = fold_of[truth.sample_ids].to_numpy(dtype=object)
        usable = box_matching.finite(detections)
        rows = detections if usable else detections.iloc[:0]
        matches = box_matching.match_detections(truth, rows, iou_thresholds=_IOU_THRESHOLDS[metric])
        parts = tuple((rows, matches.of_frames(rows)) for rows in _rows_of(folds))
        return cls(truth.sample_ids, truth.boxes_per_frame, units, folds, metric, parts, usable)

    @property
    def counted(self) -> tuple[Column, ...]:
        """Annotated boxes, [frames]."""
        return (self.truth,)

    @property
    def elements(self) -> int:
        """Frames, or true positives where those are more."""
        return max(len(self.truth), *(int((matches.box >= 0).any(axis=0).sum()) for _, matches in self.folds))

    def value(self, weights: Weights) -> Floats:
        """Average precision, [weightings]; NaN where no annotated box has a weight."""
        precision, boxes = np.zeros(len(weights)), np.zeros(len(weights))
        for frames, matches in self.folds:
            own = weights[:, frames]
            annotated = own @ matches.boxes_per_frame
            found = average_precision(matches, own).mean(axis=1)
            precision += np.where(annotated > 0, found * annotated, 0)
            boxes += annotated
        return _ratio(precision, boxes if self.usable else np.zeros(len(weights)))

    def parts(self, other: Self) -> Floats | None:
        """None: how precise a detector is at one recall depends on all frames together."""
        return None

    def pooled(self, other: Self) -> DetectionScores:
        """Both networks by rank, see ``Scores.pooled``."""
        frames = len(self.truth)
        return DetectionScores(
            np.concatenate([self.sample_ids, other.sample_ids]),
            np.concatenate([self.truth, other.truth]),
            np.concatenate([self.units, other.units]),
            np.concatenate([self.strata, other.strata]),
            self.statistic,
            tuple(
                (np.concatenate([rows, second_rows + frames]), _pooled_matches(first, second))
                for (rows, first), (second_rows, second) in zip(self.folds, other.folds, strict=True)
            ),
            self.usable and other.usable,
        )


def _pooled_matches(first: Matches, second: Matches) -> Matches:
    """Detections of two networks in the same frames as if the second had frames of its own, ranked from the top.

    The rank is not divided by the number of detections. It is the number of detections in the same frames that a
    network is surer of, so equal ranks are equal operating points; a long tail of boxes with low scores, which hardly
    touches the average precision, would shift the quotient of all others.
    """
    rank = np.concatenate([rankdata(-first.score), rankdata(-second.score)])
    frame = np.concatenate([first.frame, second.frame])
    # Equal ranks by frame, as in the ranking of one network: then it does not matter which of the two comes first,
    # because a frame is taken from one of them.
    order = np.lexsort((frame, rank))
    offset = np.where(second.box >= 0, second.box + int(first.boxes_per_frame.sum()), -1)
    return Matches(
        score=-rank[order],
        frame=np.concatenate([first.frame, second.frame + len(first.boxes_per_frame)])[order],
        box=np.concatenate([first.box, offset], axis=1)[:, order],
        boxes_per_frame=np.concatenate([first.boxes_per_frame, second.boxes_per_frame]),
        thresholds=first.thresholds,
    )


def _rows_of(strata: Column) -> Iterator[Indices]:
    """Indices of the samples of each stratum, rising."""
    codes, names = pd.factorize(strata, sort=True)
    for code in range(len(names)):
        yield np.flatnonzero(codes == code).astype(np.intp)


def _order(sample_ids: Column) -> Indices:
    if len(sample_ids) == 0:
        raise ValueError("there are no labelled samples.")
    order = np.argsort(sample_ids, kind="stable").astype(np.intp)
    ordered = sample_ids[order]
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"sample {repeated[0]!r} occurs more than once.")
    return order


def _column(name: str, values: npt.ArrayLike, length: int) -> Column:
    column = np.asarray(values, dtype=object)
    if column.shape != (length,):
        raise ValueError(f"{name} have the shape {column.shape}, expected one for each of {length} samples.")
    missing = int(pd.isna(column).sum())
    if missing:
        raise ValueError(f"{missing} {name} are missing.")
    return column


def _ratio(part: Floats, whole: Floats) -> Floats:
    result: Floats = np.full(len(part), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
