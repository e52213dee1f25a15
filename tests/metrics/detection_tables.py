"""Small tables of frames and detections, and strategies that make them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

Box = Sequence[float]
Scored = tuple[float, Box]  # score and box


def frame_table(boxes: Mapping[str, Sequence[Box]], **columns: Sequence[Any]) -> pd.DataFrame:
    """Frames by name with their boxes; each its own sequence and patient unless columns say else."""
    names = list(boxes)
    table = {"sample_id": names, "sequence_id": names, "patient_id": names} | columns
    return pd.DataFrame(table | {"boxes": [list(map(list, own)) for own in boxes.values()]})


def detection_table(detected: Mapping[str, Sequence[Scored]], network: str = "student_0") -> pd.DataFrame:
    """Detections by frame, each (score, box)."""
    rows = [(name, network, score, *map(float, box)) for name, own in detected.items() for score, box in own]
    columns = ["sample_id", "network", "score", "xmin", "ymin", "xmax", "ymax"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


# Whole numbers make IoUs of exactly 0.5 and equal IoUs frequent, and free of rounding.
corners = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))
boxes = corners.map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
frame_boxes = st.lists(boxes, max_size=4)


def scored_boxes(levels: int) -> st.SearchStrategy[list[Scored]]:
    """Detections of one frame; few levels make many equal scores."""
    return st.lists(st.tuples(st.integers(1, levels).map(lambda level: level / levels), boxes), max_size=6)


def cases(levels: int = 5, frames: int = 5) -> st.SearchStrategy[tuple[dict[str, Any], dict[str, Any]]]:
    """Boxes and detections of some frames, by name."""
    one = st.tuples(frame_boxes, scored_boxes(levels))
    return st.lists(one, min_size=1, max_size=frames).map(
        lambda pairs: (
            {f"f{index}": pair[0] for index, pair in enumerate(pairs)},
            {f"f{index}": pair[1] for index, pair in enumerate(pairs)},
        )
    )


def distinct(detected: Mapping[str, Sequence[Scored]], seed: int = 0) -> dict[str, list[Scored]]:
    """The same detections with scores that all differ."""
    count = sum(len(own) for own in detected.values())
    scores = iter(np.random.default_rng(seed).permutation(count) / max(count, 1))
    return {name: [(float(next(scores)), box) for _, box in own] for name, own in detected.items()}


def cohort(
    sequences: int = 8, frames: int = 6, networks: Sequence[str] = ("student_0",), seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sequences of frames with no, one or two polyps, and imperfect detections of them; every fourth is negative."""
    generator = np.random.default_rng(seed)
    truth: dict[str, list[Box]] = {}
    for sequence in range(sequences):
        for number in range(frames):
            count = 0 if sequence % 4 == 3 else int(generator.integers(0, 3))
            corner = generator.uniform(0, 200, (count, 2))
            truth[f"s{sequence}-{number}"] = np.hstack(
                [corner, corner + generator.uniform(30, 80, (count, 2))]
            ).tolist()
    tables = []
    for network in networks:
        detected: dict[str, list[Scored]] = {}
        for name, own in truth.items():
            near = [(generator.uniform(0.2, 1), np.add(box, generator.normal(0, 6, 4))) for box in own]
            far = [(generator.uniform(0, 0.8), (x, y, x + 40, y + 40)) for x, y in generator.uniform(0, 200, (2, 2))]
            detected[name] = near + far
        tables.append(detection_table(detected, network))
    names = list(truth)
    frame = frame_table(
        truth,
        sequence_id=[name.partition("-")[0] for name in names],
        patient_id=[f"p{int(name[1]) // 2}" for name in names],
        polyp_ids=[
            [f"{name.partition('-')[0]}-polyp{index}" for index in range(len(own))] for name, own in truth.items()
        ],
    )
    return frame, pd.concat(tables, ignore_index=True)
