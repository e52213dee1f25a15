"""Figures as part of a page: drawings that scale, whose text is text and whose colours are those of the page."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from kdml_med.report.figures import ON_DARK, style

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
# As "font: 600 10px 'DejaVu Sans', …", or in parts, by matplotlib's version.
_FONT = re.compile(r"font: ([^;]*?)([\d.]+px)[^;]*")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_NOT_TURNED = re.compile(r"rotate\(-?0 [^)]*\)")
_LEAST = 540
"""Pixels below which a figure of several charts is not legible: on a telephone it is moved sideways instead."""
# Nothing in XML can stand for these, not even an entity.
NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def colour_variables() -> dict[str, tuple[str, str]]:
    """Variables of the page that figures are coloured by: on a light and on a dark ground."""
    return {_variable(colour): (colour.lower(), dark) for colour, dark in ON_DARK.items()}


def inline_svg(figure: Figure, number: int, words: str) -> str:
    """A figure as an ``svg`` element.

    Nothing in it is painted where the figure has its white ground, so that it stands on the page's own.

    Args:
        figure: drawn within ``style``.
        number: of the figure on its page; keeps the names inside it apart from those of other figures.
        words: what it shows, read out to people who cannot see it.
    """
    sink = io.StringIO()
    with style():
        figure.savefig(sink, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    root = ElementTree.fromstring(NO_XML.sub("�", text[text.index("<svg") :]))
    _drop(root, {f"{_SVG}metadata", f"{_SVG}style"})
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _rename(element, used, f"f{number}-")
        _restyle(element)
        for name in ("d", "x", "y", "points", "transform"):
            if name in element.attrib:
                element.set(name, _DECIMALS.sub(_rounded, element.attrib[name]))
    view = root.attrib["viewBox"]
    least = f"min-width: {_LEAST}px" if figure_pixels(figure) > _LEAST else ""
    attributes = {"viewBox": view, "role": "img", "aria-label": words, **({"style": least} if least else {})}
    root.attrib.clear()
    root.attrib.update(attributes)
    return ElementTree.tostring(root, encoding="unicode")


def figure_pixels(figure: Figure) -> int:
    """Width of a figure on a page at its own size: 96 pixels an inch, as browsers count."""
    return round(96 * figure.get_figwidth())


def _variable(colour: str) -> str:
    return f"--c-{colour[1:].lower()}"


def _drop(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _references(element: ElementTree.Element) -> list[str]:
    found = [name for value in element.attrib.values() for name in _REFERENCE.findall(value)]
    return [*found, *([element.attrib[_HREF][1:]] if element.attrib.get(_HREF, "").startswith("#") else [])]


def _rename(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Names that nothing refers to go, the others become those of this figure alone."""
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{prefix}{own}")
    target = element.attrib.pop(_HREF, None)
    if target is not None:
        element.set("href", f"#{prefix}{target[1:]}" if target.startswith("#") else target)
    for name, value in element.attrib.items():
        element.set(name, _REFERENCE.sub(lambda found: f"url(#{prefix}{found[1]})", value))


def _restyle(element: ElementTree.Element) -> None:
    """Colours become variables of the page, and letters those of the page."""
    text = element.attrib.get("style")
    if text is None:
        return
    text = _COLOUR.sub(_on_page, text)
    if element.tag == "text":
        text = _FAMILY.sub("", _FONT.sub(_page_font, text))
        if _NOT_TURNED.fullmatch(element.attrib.get("transform", "")):
            del element.attrib["transform"]
    element.set("style", text)


def _on_page(found: re.Match[str]) -> str:
    colour = found[0].lower()
    if colour == "#ffffff":
        return "var(--ground)"
    known = {known.lower() for known in ON_DARK}
    return f"var({_variable(colour)})" if colour in known else colour


def _page_font(found: re.Match[str]) -> str:
    weight = "600" if re.search(r"\b(?:bold|[6-9]00)\b", found[1]) else "400"
    return f"font-weight: {weight}; font-size: {found[2]}"


def _rounded(found: re.Match[str]) -> str:
    """A hundredth of a point is less than anybody sees."""
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
