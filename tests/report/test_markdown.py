"""Text that Markdown shows as it stands, read back by a parser of CommonMark."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdml_med.report.document import Bullets, Code, Paragraph, Section, Table
from kdml_med.report.pages import write_pages
from kdml_med.report.tables import code_fence, markdown_table, markdown_text
from kdml_med.report.vector import NO_XML
from tests.examples import examples
from tests.report.documents import HOSTILE

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
TEXTS = st.one_of(
    st.text(st.sampled_from("ab1 _*`~[]()<>!&;#|\\-+.=:/\"'\n\t$^"), max_size=24),
    st.text(max_size=12),
).filter(lambda text: not NO_XML.search(text))  # fmt: skip


def shown(markdown):
    """Kinds of blocks, and what is read in them; fails where something is more than text."""
    blocks, words = [], []
    for token in PARSER.parse(markdown):
        if token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special", "softbreak"}
            words.append("".join(child.content for child in token.children))
        else:
            blocks.append(token.type)
    return blocks, words


def same(text):
    return " ".join(text.split())


@settings(max_examples=examples(400))
@given(TEXTS)
@example("1. one")
@example("1)")
@example("- one")
@example("====")
@example("***")
@example("&amp; &#60;")
@example("\\")
@example("a  \\\nb")
@example("[a]: http://b")
@example("_a_ a_b_ __c__")
@example("`" * 4)
@example("<!-- a -->")
@example("~~a~~")
@example("   indented")
def test_text_is_one_paragraph_of_the_same_words(text):
    blocks, words = shown(markdown_text(text))
    assert words == ([same(text)] if same(text) else [])
    assert blocks == (["paragraph_open", "paragraph_close"] if same(text) else [])


@settings(max_examples=examples(200))
@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=3))
@example([""], ["a \\| b"])
@example(["\\"], ["\\"])
def test_cells_are_the_same_words(columns, cells):
    cells = (cells * 3)[: len(columns)]
    blocks, words = shown(markdown_table(Table(columns, [cells])))
    assert blocks[0] == "table_open"
    assert words == [same(cell) for cell in [*columns, *cells]]


@settings(max_examples=examples(100))
@given(st.text(st.sampled_from("`~a\n "), max_size=20))
def test_a_block_of_code_ends_behind_its_text(text):
    (token,) = PARSER.parse(f"{code_fence(text)}text\n{text}\n{code_fence(text)}")
    assert token.content == f"{text}\n"


@pytest.mark.parametrize(
    "text", ["p < 0.001", "student_0", "AUROC (95 %)", "−0.5 – 1.0", "cells/edge/ml/seed2", "a > b"]
)
def test_usual_words_stay_legible(text):
    assert markdown_text(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_whole_document_keeps_its_parts(tmp_path, text):
    table = Table([text, text], [[text, text]], title=text)
    parts = [Paragraph(text, lead=text), Bullets([text, text]), Code(text), table]
    write_pages(tmp_path, text, [Section(text, parts), Section("Warning", [Paragraph(text)], banner=True)])
    tokens = PARSER.parse((tmp_path / "report.md").read_text())
    kinds = [token.type for token in tokens if token.type.endswith("_open") or token.type == "fence"]
    assert [kind for kind in kinds if kind not in ("paragraph_open", "tr_open", "thead_open", "tbody_open")] == [
        "heading_open", "heading_open", "bullet_list_open", "list_item_open", "list_item_open", "fence", "table_open",
        "th_open", "th_open", "td_open", "td_open", "heading_open", "blockquote_open",
    ]  # fmt: skip
    inside = {child.type for token in tokens for child in token.children or []}
    assert inside <= {"text", "text_special", "strong_open", "strong_close"}
    assert not re.search("[\x00-\x08\x1b]", (tmp_path / "report.md").read_text())
