"""Equations of the documentation as MathML, written when the site is built: no script has to be fetched to read them.

A hook of MkDocs. The pages hold TeX (``$…$`` and fences called ``math``, which GitHub shows, too); Arithmatex marks it,
and here the marks become MathML, which every current browser shows.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """The page with its marked equations as MathML.

    Raises:
        PluginError: TeX that the converter does not know, so that no page shows half an equation.
    """
    return MARKED.sub(lambda mark: _equation(mark, page.file.src_uri), content)


def _equation(mark: re.Match[str], name: str) -> str:
    block, tex = mark[1] == "div", html.unescape(mark[2]).strip()
    written = convert(tex, display="block" if block else "inline")
    if "<mi>&</mi>" in written or "<mi>\\" in written:
        raise PluginError(f"{name}: latex2mathml does not know all of {tex!r}; lines are aligned with 'split'")
    return f'<div class="equation" tabindex="0">{written}</div>' if block else written
