"""Whole reports as people open them: in a real browser, in windows of any width, light and dark, printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdml_med.clinical.slides import findings, judging
from kdml_med.clinical.writing import write_report
from kdml_med.experiments.report.sections import all_sections
from kdml_med.report.pages import write_pages
from tests.clinical import detectors
from tests.clinical.answered import write_evaluation
from tests.clinical.studies import predictions_on, write_placed_dataset, write_study
from tests.experiments.findings import made_up_findings
from tests.report.browser import DARK, needs_browser, open_page, print_page, widths_of
from tests.report.documents import HOSTILE

pytestmark = [pytest.mark.slow, needs_browser]


def _of_slides(folder: Path) -> Path:
    """With an external cohort, whose patients have names that want to be more than text."""
    dataset = write_placed_dataset(folder / "tiles")
    run = write_study(folder / "run", dataset)
    other = predictions_on(dataset, "test", seed=5)
    names = dict(zip(other["patient_id"].unique(), HOSTILE[:5], strict=False))
    other["patient_id"] = other["patient_id"].replace(names)
    write_report(run, external=[write_evaluation(run / "evaluation_<b>", other, split="test")])
    return run / "report.html"


def _of_polyps(folder: Path) -> Path:
    run = detectors.write_study(folder)
    write_report(run, speed=False)
    return run / "report.html"


def _of_experiments(folder: Path) -> Path:
    found = made_up_findings(missing=[(HOSTILE[0], HOSTILE[1])])
    write_pages(folder, HOSTILE[0], all_sections(found))
    return folder / "report.html"


@pytest.fixture(scope="module", params=[_of_slides, _of_polyps, _of_experiments])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "RESAMPLES", 50)
        patch.setattr(findings, "RESAMPLES_OF_GROUPS", 50)
        path: Path = request.param(tmp_path_factory.mktemp("report"))
    assert path.stat().st_size < 10_000_000
    return path.read_text()


@pytest.mark.parametrize("flags", [(), (DARK,)])
def test_it_opens_without_errors_and_asks_for_nothing(page: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    script = "return [document.scripts.length, document.querySelectorAll('svg[role=img]').length]"
    opened = open_page(page, tmp_path, *flags, script=script)
    assert opened.console == []
    assert opened.requests == []
    assert opened.result == [2, page.count("<svg ")]


def test_it_is_never_wider_than_its_window(page: str, tmp_path: Path) -> None:
    assert [own for own, given in widths_of(page, tmp_path, [320, 390, 768, 1600]) if own > given] == []


def test_it_is_printed(page: str, tmp_path: Path) -> None:
    assert print_page(page, tmp_path) >= 2
