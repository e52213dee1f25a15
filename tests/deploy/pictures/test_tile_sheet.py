"""Contact sheets of the highest and lowest tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.deploy.pictures.tile_sheet import BOTTOM_FILE, TOP_FILE, SheetTile, choose_tiles, write_tile_sheets
from tests.examples import examples


def make_tiles(count: int, *, side: int = 32, cam: bool = True) -> list[SheetTile]:
    evidence = np.zeros((side, side), np.float32)
    evidence[:, side // 2 :] = 1
    return [
        SheetTile(
            image=np.full((side, side, 3), (10, 40 + number, 200), np.uint8),
            probability=1 - number / 20,
            x_l0=123456.5,
            y_l0=number,
            cam=evidence if cam else None,
        )
        for number in range(count)
    ]


def write(folder: Path, top: list[SheetTile], bottom: list[SheetTile], **changes: Any) -> list[str]:
    settings = {"classes": ["MSS", "MSI"], "network": "ensemble"} | changes
    return write_tile_sheets(folder, "<S1> $x$ %", top, bottom, **settings)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_each_tile_stands_beside_what_spoke_for_it(tmp_path: Path) -> None:
    assert write(tmp_path, make_tiles(7), make_tiles(2)) == [TOP_FILE, BOTTOM_FILE]
    top = picture(tmp_path / TOP_FILE)
    shades = [np.argwhere((top == (10, 40 + number, 200)).all(axis=2)) for number in range(7)]
    boxes = [np.concatenate([shade.min(axis=0), np.ptp(shade, axis=0) + 1]) for shade in shades]
    assert [tuple(box[2:]) for box in boxes] == [(224, 224)] * 7
    assert len({box[0] for box in boxes}) == 3, "three rows of up to three"
    row, column = boxes[0][:2]
    beside = top[row : row + 224, column + 224 : column + 448]
    assert beside[:, 180:, :2].mean() > beside[:, :40, :2].mean() + 50, "yellow where it spoke for the class"


def test_tiles_alone_are_enough_and_an_old_sheet_goes(tmp_path: Path) -> None:
    write(tmp_path, make_tiles(3), make_tiles(3))
    assert write(tmp_path, make_tiles(1, cam=False), []) == [TOP_FILE]
    assert [path.name for path in tmp_path.iterdir()] == [TOP_FILE]
    assert picture(tmp_path / TOP_FILE).shape[1] < 1100


def test_the_same_tiles_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, make_tiles(3, side=224), make_tiles(2), synthetic=True)
    assert (tmp_path / "a" / TOP_FILE).read_bytes() == (tmp_path / "b" / TOP_FILE).read_bytes()


@settings(max_examples=examples(100))
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(1, 12))
def test_the_outermost_tiles_are_chosen_and_none_twice(values: list[float], at_most: int) -> None:
    top, bottom = choose_tiles(np.array(values), at_most)
    assert not {*top} & {*bottom}
    assert len(top) == min(at_most, (len(values) + 1) // 2)
    assert len(bottom) == min(at_most, len(values) // 2)
    ordered = sorted(values)
    assert [values[place] for place in top] == ordered[::-1][: len(top)]
    assert [values[place] for place in bottom] == ordered[: len(bottom)]


def test_of_equal_tiles_the_first_come_first() -> None:
    assert choose_tiles(np.zeros(10), 3) == ([0, 1, 2], [3, 4, 5])


@pytest.mark.parametrize("count", [1, 2, 12])
def test_sheets_of_any_number_of_tiles_are_wide_enough_for_their_text(tmp_path: Path, count: int) -> None:
    write(tmp_path, make_tiles(count), [])
    assert 900 < picture(tmp_path / TOP_FILE).shape[1] < 1500
