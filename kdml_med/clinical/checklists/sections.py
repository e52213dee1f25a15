"""TRIPOD+AI and STARD 2015 for one run: what stands on this page, and what the author has to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdml_med.clinical.checklists.items import STARD, TRIPOD_AI, Item
from kdml_med.report.document import Paragraph, Section, Table

TRIPOD_TITLE = "TRIPOD+AI checklist"
STARD_TITLE = "STARD checklist"
_SOURCES = {
    TRIPOD_TITLE: "Collins et al. 2024, BMJ 385:e078378, for prediction models that are developed or evaluated",
    STARD_TITLE: "Bossuyt et al. 2015, BMJ 351:h5527, for studies of diagnostic accuracy",
}


def checklist_sections(facts: Mapping[str, str]) -> list[Section]:
    """Both checklists, folded away.

    Args:
        facts: what the data of the run say, by name; see ``kdml_med.clinical.checklists.facts.collect_facts``.
    """
    return [_checklist(title, items, facts) for title, items in ((TRIPOD_TITLE, TRIPOD_AI), (STARD_TITLE, STARD))]


def _checklist(title: str, items: Sequence[Item], facts: Mapping[str, str]) -> Section:
    rows = [[item.number, item.asks, _known(item, facts) or "–", item.author] for item in items]
    helped = sum(row[2] != "–" for row in rows)
    text = (
        f"{_SOURCES[title]}. Numbers are those of the guideline; words are this project's, so fill in the published "
        f"form itself. For {helped} of {len(items)} items the data of this run say something, in whole or in part; a "
        "dash marks what only the author can write. Nothing here is a judgement of the study."
    )
    columns = ["item", "what a reader has to learn", "what the data of this run say", "left to the author"]
    return Section(title, [Paragraph(text), Table(columns, rows, names=4)], folded=True)


def _known(item: Item, facts: Mapping[str, str]) -> str:
    """What the run says about an item; empty where it says nothing."""
    return " ".join(facts[name] for name in item.facts if facts.get(name))
