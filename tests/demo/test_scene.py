"""The renderer: rays meet the surface, polyps are where the mask says, and the camera moves smoothly."""

import numpy as np
import pytest

from kdml_med.demo.camera import HEIGHT_PX, WIDTH_PX, FieldOfView, look_at
from kdml_med.demo.clips import mask_boxes
from kdml_med.demo.colon import ANGLES, ROWS, draw_colon
from kdml_med.demo.endoscope import REACH_MM, View, trace
from kdml_med.demo.fields import enlarge_wrapped
from kdml_med.demo.picture import Motion, develop, draw_processor
from kdml_med.demo.polyps import draw_polyp
from kdml_med.demo.sequences import LEAST_SIDE_PX, Sequence, draw_sequence, render_frame

FIELD = FieldOfView(50, 8, 312, 248, 40)


@pytest.fixture(scope="module")
def sequence() -> Sequence:
    return draw_sequence(np.random.SeedSequence(3), frames=12, polyps=2)


def test_rays_are_unit_vectors_and_the_middle_looks_ahead() -> None:
    rays = FIELD.rays()
    np.testing.assert_allclose((rays**2).sum(axis=0), 1, atol=1e-5)
    middle = rays[:, (8 + 248) // 2, (50 + 312) // 2]
    assert middle[2] > 0.9999
    assert rays[0, 128, 300] > 0 > rays[0, 128, 60]
    assert rays[1, 240, 181] > 0 > rays[1, 16, 181]


def test_the_field_of_view_is_a_rectangle_without_its_corners() -> None:
    mask = FIELD.mask()
    assert mask.shape == (HEIGHT_PX, WIDTH_PX)
    assert mask[8, 180]
    assert mask[128, 50]
    assert mask[247, 180]
    assert mask[128, 311]
    assert not mask[8, 50]
    assert not mask[8 + 19, 50 + 19]
    assert mask[8 + 20, 50 + 20]
    assert not mask[:, :50].any()


def test_a_pose_is_a_rotation_that_looks_at_its_target() -> None:
    pose = look_at(np.array([1.0, 2.0, 3.0]), np.array([4.0, 2.5, 40.0]), roll=0.7)
    np.testing.assert_allclose(pose.turn.T @ pose.turn, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(pose.turn), 1)
    ahead = pose.turn.T @ (np.array([4.0, 2.5, 40.0]) - pose.position)
    np.testing.assert_allclose(ahead[:2], 0, atol=1e-12)
    assert ahead[2] > 0


def test_the_wall_meets_itself_around_the_tube() -> None:
    radius = draw_colon(np.random.default_rng(0)).radius
    assert radius.shape == (ROWS, ANGLES)
    inner = np.abs(np.diff(radius, axis=1)).max()
    assert np.abs(radius[:, 0] - radius[:, -1]).max() <= inner * 1.05
    assert radius.min() > 5


def test_an_enlarged_field_wraps() -> None:
    field = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    turned = enlarge_wrapped(np.roll(field, 5, axis=1), (32, 64))
    np.testing.assert_allclose(turned, np.roll(enlarge_wrapped(field, (32, 64)), 20, axis=1), atol=1e-5)


def test_rays_end_on_the_surface(sequence: Sequence) -> None:
    scene, view = sequence.scene, View.of(sequence.field)
    points, depth = trace(scene, view, sequence.poses[4])
    reached = depth < REACH_MM
    assert np.isfinite(points).all()
    # The lumen may go on in the dark, and a few rays graze an edge for longer than they are followed.
    near_enough = np.abs(scene.distance(points)) < 0.2 + 0.01 * depth
    assert near_enough[reached].mean() > 0.99


def test_a_polyps_distance_never_exceeds_the_way_to_its_surface() -> None:
    rng = np.random.default_rng(1)
    colon = draw_colon(rng)
    for number in range(1, 6):
        polyp = draw_polyp(rng, colon, number, 80.0, rng.uniform(0, 6.28))
        centre, radius = polyp.bounds()
        points = (centre[:, None] + rng.normal(0, radius, (3, 4000))).astype(np.float32)
        gap = polyp.distance(points)
        assert (np.linalg.norm(points - centre[:, None], axis=0)[gap < 0] < radius).all()
        # A step of the stated length in any direction stays outside.
        outside, step = points[:, gap > 0], gap[gap > 0]
        heading = rng.standard_normal(outside.shape)
        heading /= np.linalg.norm(heading, axis=0)
        assert (polyp.distance((outside + 0.99 * step * heading).astype(np.float32)) > -0.05).all()


def test_boxes_stay_inside_the_picture_and_move_smoothly(sequence: Sequence) -> None:
    view, field = View.of(sequence.field), sequence.field
    previous: dict[int, tuple[int, int, int, int]] = {}
    seen = 0
    for number in range(12):
        _, mask = render_frame(sequence, view, number)
        boxes = mask_boxes(mask)
        for polyp, (xmin, ymin, xmax, ymax) in boxes.items():
            assert field.left <= xmin < xmax <= field.right
            assert field.top <= ymin < ymax <= field.bottom
            assert min(xmax - xmin, ymax - ymin) >= LEAST_SIDE_PX
            assert not mask[~view.inside].any()
            if polyp in previous:
                before = previous[polyp]
                way = np.hypot(xmin + xmax - before[0] - before[2], ymin + ymax - before[1] - before[3]) / 2
                assert way < 40
                assert 0.4 < (xmax - xmin) / (before[2] - before[0]) < 2.5
        previous, seen = boxes, seen + len(boxes)
    assert seen >= 6


def test_a_polyp_that_is_hardly_visible_is_not_drawn(monkeypatch: pytest.MonkeyPatch, sequence: Sequence) -> None:
    view = View.of(sequence.field)
    number = next(n for n in range(12) if render_frame(sequence, view, n)[1].any())
    monkeypatch.setattr("kdml_med.demo.sequences.LEAST_SIDE_PX", 1000)
    image, mask = render_frame(sequence, view, number)
    assert not mask.any()
    monkeypatch.undo()
    assert (image != render_frame(sequence, view, number)[0]).any()


def test_motion_blur_leaves_the_border_and_the_margin_alone() -> None:
    inside = FIELD.mask()
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 1, (3, int(inside.sum()))).astype(np.float32)
    processor = draw_processor(rng)
    sharp, blurred = (
        develop(light, inside, processor, Motion(length, 0.3), 75, np.random.default_rng(1)) for length in (0.0, 9.0)
    )
    np.testing.assert_array_equal(sharp[~inside], blurred[~inside])
    assert blurred[inside].std() < 0.6 * sharp[inside].std()
    text = sharp[:60, : FIELD.left].max(axis=-1) > 150
    assert 40 < text.sum() < 800
