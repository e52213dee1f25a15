"""One generated sequence: a bowel, its polyps, and the way of the camera past them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdml_med.demo.camera import FieldOfView, Pose, draw_field, look_at
from kdml_med.demo.colon import STEP_SAFETY, Colon, draw_colon
from kdml_med.demo.endoscope import Scene, View, shade, trace
from kdml_med.demo.mucosa import draw_palette, paint_texture
from kdml_med.demo.picture import Motion, Processor, UInt8Image, develop, draw_motion, draw_processor
from kdml_med.demo.polyps import Polyp, draw_polyp

LEAST_SIDE_PX = 16
"""A polyp whose visible part has a shorter side than this is left out of the frame."""
LARGEST_PX = 118.0
"""Wanted upper bound of a polyp's diameter in the frame."""
LARGEST_STEP_PX = 24.0
"""Wanted upper bound of the way of a polyp's centre between two frames."""
SEEN_SHARE = (0.45, 0.75)
"""Wanted share of a sequence's frames with a polyp in view, where there is one; folds can hide it in more."""
LEAST_GAP_MM = 3.5
"""Between the tip and whatever it passes."""
PATHS_TRIED = 60

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sequence:
    """Everything that decides the frames of one sequence.

    Attributes:
        scene: colon, texture and polyps.
        field: where the picture is in the frame.
        poses: camera position of each frame.
        motions: blur of each frame.
        processor: tone, border and clock.
        noise_seed: of the sensor's noise.
    """

    scene: Scene
    field: FieldOfView
    poses: tuple[Pose, ...]
    motions: tuple[Motion, ...]
    processor: Processor
    noise_seed: np.random.SeedSequence


def draw_sequence(seed: np.random.SeedSequence, *, frames: int, polyps: int) -> Sequence:
    """Draw one sequence.

    Args:
        seed: decides everything.
        frames: number of frames.
        polyps: number of polyps on the wall: 0, 1 or 2. Not each is in view in every frame.
    """
    looks_seed, shape_seed, path_seed, flaw_seed, noise_seed = seed.spawn(5)
    looks, shape, flaws = (np.random.default_rng(each) for each in (looks_seed, shape_seed, flaw_seed))
    colon = draw_colon(shape)
    texture = paint_texture(looks, draw_palette(looks))
    angle, z = shape.uniform(0, 2 * np.pi), shape.uniform(75, 100)
    grown = []
    for number in range(1, polyps + 1):
        grown.append(draw_polyp(shape, colon, number, z, angle))
        angle += shape.uniform(1.6, 4.6)
        z += shape.uniform(-16, 16)
    field = draw_field(looks)
    poses = _draw_path(np.random.default_rng(path_seed), colon, grown, field, frames, z)
    motions = tuple(draw_motion(flaws) for _ in range(frames))
    scene = Scene(colon, texture, tuple(grown))
    return Sequence(scene, field, poses, motions, draw_processor(looks), noise_seed)


def render_frame(sequence: Sequence, view: View, number: int) -> tuple[UInt8Image, npt.NDArray[np.uint8]]:
    """Render one frame.

    Args:
        sequence: to render.
        view: rays of the sequence's field of view.
        number: of the frame, from 0.

    Returns:
        Picture, uint8 [rows, columns, 3] RGB; polyp number of each pixel, uint8 [rows, columns], 0 for none.
    """
    pose, scene = sequence.poses[number], sequence.scene
    while True:
        points, depth = trace(scene, view, pose)
        owner = scene.owner(points, depth)
        mask = np.zeros(view.inside.shape, dtype=np.uint8)
        mask[view.inside] = owner
        kept = tuple(polyp for polyp in scene.polyps if not _is_sliver(mask == polyp.number))
        if len(kept) == len(scene.polyps) or not owner.any():
            break
        scene = replace(scene, polyps=kept)
    light = shade(scene, points, depth, owner, pose)
    rng = np.random.default_rng(
        np.random.SeedSequence(sequence.noise_seed.entropy, spawn_key=(*sequence.noise_seed.spawn_key, number))
    )
    second = sequence.processor.seconds + number // 5
    return develop(light, view.inside, sequence.processor, sequence.motions[number], second, rng), mask


def _is_sliver(mask: npt.NDArray[np.bool_]) -> bool:
    """Whether something of a polyp is visible, but too little."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return bool(len(rows) > 0 and min(np.ptp(rows), np.ptp(columns)) + 1 < LEAST_SIDE_PX)


def _draw_path(
    rng: np.random.Generator, colon: Colon, polyps: list[Polyp], field: FieldOfView, frames: int, z: float
) -> tuple[Pose, ...]:
    """Camera poses; the best of some random ways by what the polyps will look like along it."""
    best: tuple[float, tuple[Pose, ...]] = (np.inf, ())
    for _ in range(PATHS_TRIED):
        poses = _random_path(rng, colon, polyps, frames, z)
        fault = _closeness(poses, colon, polyps) + _fault(poses, polyps, field)
        if fault < best[0]:
            best = (fault, poses)
        if fault == 0:
            break
    return best[1]


def _random_path(
    rng: np.random.Generator, colon: Colon, polyps: list[Polyp], frames: int, z: float
) -> tuple[Pose, ...]:
    """In or out along the centre line, past ``z`` or up to it, with a hand that is not quite still."""
    ends = [z - rng.uniform(34, 58), z + rng.uniform(-16, 12)]
    if rng.random() < 0.5:
        ends.reverse()
    share = np.linspace(0, 1, frames)
    along = ends[0] + (ends[1] - ends[0]) * share
    sway, wander = _wave(rng, frames, 3.0), _wave(rng, frames, 16.0)
    pull, spin, twist = rng.uniform(-0.1, 0.5), rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
    lean = rng.normal(0, 9, 2)  # few hold the lumen in the middle all the time
    poses = []
    for number, place in enumerate(along):
        position = colon.centre_at(place) + np.array([*sway[:, number], 0.0])
        target = colon.centre_at(place + 40) + np.array([*(wander[:, number] + lean), 0.0])
        if polyps:
            # Look towards the first polyp, less so the closer it is: past it, the tip points on along the lumen.
            ahead = np.clip((polyps[0].centre[2] - place) / 25, 0, 1)
            target = target + pull * ahead * (polyps[0].centre - target)
        poses.append(look_at(position, target, spin + twist * share[number]))
    return tuple(poses)


def _wave(rng: np.random.Generator, frames: int, amplitude: float) -> Vector:
    """Smooth wandering in x and y, float64 [2, frames]."""
    time = np.arange(frames)
    waves = [
        amplitude * rng.uniform(0.3, 1.0) * np.sin(2 * np.pi * time / rng.uniform(14, 40) + rng.uniform(0, 6.28))
        for _ in range(2)
    ]
    return np.stack(waves)


def _closeness(poses: tuple[Pose, ...], colon: Colon, polyps: list[Polyp]) -> float:
    """How far the tip comes closer to something than it may, weighed so that nothing outweighs it."""
    points = np.stack([pose.position for pose in poses], axis=1).astype(np.float32)
    gaps = [float(colon.distance(points).min() / STEP_SAFETY), *(float(p.distance(points).min()) for p in polyps)]
    return 1000 * max(0.0, LEAST_GAP_MM - min(gaps))


def _fault(poses: tuple[Pose, ...], polyps: list[Polyp], field: FieldOfView) -> float:
    """How far a path is from what is wanted, 0 for a good one; polyps are taken as spheres that nothing hides."""
    if not polyps:
        return 0.0
    inside = field.mask()
    fault, seen = 0.0, np.zeros(len(poses), dtype=np.bool_)
    for polyp in polyps:
        centres, sizes = (np.array(part) for part in zip(*(_project(p, polyp, field) for p in poses), strict=True))
        x, y = np.rint(centres).astype(int).T
        visible = (x >= 0) & (x < inside.shape[1]) & (y >= 0) & (y < inside.shape[0])
        visible &= inside[np.clip(y, 0, inside.shape[0] - 1), np.clip(x, 0, inside.shape[1] - 1)]
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)[visible[1:] | visible[:-1]]
        fault += max(0.0, float(sizes[visible].max(initial=0)) - LARGEST_PX)
        fault += max(0.0, float(steps.max(initial=0)) - LARGEST_STEP_PX)
        seen |= visible
    share = float(seen.mean())
    least, most = SEEN_SHARE
    return fault + 100 * (max(0.0, least - share) + max(0.0, share - most))


def _project(pose: Pose, polyp: Polyp, field: FieldOfView) -> tuple[tuple[float, float], float]:
    """Where a polyp's centre is in the frame (x, y) and its diameter, pixels."""
    place = pose.turn.T @ (polyp.centre - pose.position)
    distance = float(np.linalg.norm(place))
    angle = float(np.arccos(np.clip(place[2] / distance, -1, 1)))
    side = float(np.hypot(place[0], place[1])) or 1.0
    x = (field.left + field.right - 1) / 2 + field.px_per_radian * angle * float(place[0]) / side
    y = (field.top + field.bottom - 1) / 2 + field.px_per_radian * angle * float(place[1]) / side
    return (x, y), 2 * float(polyp.radii.max()) / distance * field.px_per_radian
