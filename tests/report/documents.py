"""A document with every part that a page can hold, and names that want to be more than text."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image

from kdml_med.report import curves
from kdml_med.report.document import Bullets, Code, Gallery, Heading, Paragraph, Picture, Section, Table, Thumbnail

MARKUP = "<script>alert(1)</script>"
HOSTILE = [
    MARKUP,
    "\"><img src=x onerror='alert(1)'>",
    "a & b &amp; c",
    "</table></section></svg>",
    "{{ x }}{% raw %}",
    "two\nlines | a pipe",
    "$\\frac{1}{2}$ *bold* _it_ [a](http://b) `c`",
    "\x1b[31mred\x00 \udc80",
    "=HYPERLINK(\"http://b\")",
    "_hidden",
]  # fmt: skip
NETWORKS = ["teacher", "student_0", "student_1", "ensemble"]


def roc(seed=0, n=60, area=0.8):
    """Something shaped like a ROC curve with its band."""
    generator = np.random.default_rng(seed)
    x = np.sort(np.r_[0, generator.random(n), 1])
    y = np.clip(x ** (1 / area - 1 + 0.02), 0, 1)
    y = np.maximum.accumulate(np.clip(y + 0.02 * generator.standard_normal(len(x)), 0, 1))
    y[0], y[-1] = 0, 1
    grid = np.linspace(0, 1, 101)
    middle = np.interp(grid, x, y)
    return SimpleNamespace(
        x=x, y=y, thresholds=1 - x, area=area, area_low=area - 0.1, area_high=area + 0.07, grid=grid,
        low=np.clip(middle - 0.12, 0, 1), high=np.clip(middle + 0.08, 0, 1), chance=0.5,
    )  # fmt: skip


def precision_recall(seed=0):
    """Something shaped like precision over recall."""
    own = roc(seed)
    own.x, own.y, own.chance = own.x, 1 - 0.6 * own.x**2, 0.35
    own.low, own.high = 1 - 0.6 * own.grid**2 - 0.1, np.clip(1 - 0.6 * own.grid**2 + 0.08, 0, 1)
    return own


def froc(seed=0):
    """Something shaped like a FROC curve."""
    own = roc(seed)
    own.x, own.grid = own.x * 3, own.grid * 3
    return own


def reliability(seed=0):
    """Ten bins with limits."""
    generator = np.random.default_rng(seed)
    predicted = np.linspace(0.03, 0.96, 10)
    observed = np.clip(predicted + 0.08 * generator.standard_normal(10), 0, 1)
    low, high = np.clip(observed - 0.15, 0, 1), np.clip(observed + 0.15, 0, 1)
    return SimpleNamespace(predicted=predicted, observed=observed, low=low, high=high, n=np.full(10, 12))


def decision(seed=0):
    """Net benefit of a model, and of treating everybody."""
    thresholds = np.linspace(0.01, 0.99, 99)
    odds = thresholds / (1 - thresholds)
    return SimpleNamespace(
        thresholds=thresholds,
        model=np.maximum(0.33 - 0.05 * odds, -0.02 * (seed + 1)) * (1 - thresholds**4),
        treat_all=0.35 - 0.65 * odds,
    )


def history(seed=0):
    """Values of twelve epochs."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame({"epoch": range(1, 13), "value": 0.9 - 0.4 * 0.75 ** np.arange(12) * generator.random()})


def image(colour, size=96, kind="PNG"):
    """Content of a picture file."""
    sink = io.BytesIO()
    Image.new("RGB", (size, size * 3 // 4), colour).save(sink, format=kind)
    return sink.getvalue()


def patients(count=60):
    """Rows of a table of patients, the names of some of which are hostile; figures of some are not defined."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        name = HOSTILE[number] if number < len(HOSTILE) else f"patient-{number}"
        value = generator.random()
        cells = ["–" if number % 9 == 4 else f"{value:.3f} ({value - 0.1:.3f}–{value + 0.1:.3f})".replace("-", "−")]
        rows.append([name, "MSI" if number % 3 else "MSS", f"{number * 137:,}", *cells, f"{value - 0.5:+.2f}"])
    return rows


def pictures():
    """Every kind of figure."""
    every = {
        "roc": curves.draw_roc(
            {name: roc(seed, area=0.75 + 0.05 * seed) for seed, name in enumerate(NETWORKS)},
            points={"ensemble": [("rule-out", 0.45, 0.95), ("Youden", 0.2, 0.8)]},
        ),
        "pr": curves.draw_precision_recall({name: precision_recall(seed) for seed, name in enumerate(NETWORKS)}),
        "reliability": curves.draw_reliability({name: reliability(seed) for seed, name in enumerate(NETWORKS)}),
        "decision": curves.draw_decision({name: decision(seed) for seed, name in enumerate(NETWORKS)}),
        "froc": curves.draw_froc({name: froc(seed) for seed, name in enumerate(NETWORKS)}),
        "history": curves.draw_history({name: history(seed) for seed, name in enumerate(NETWORKS)}, "AUROC"),
    }
    return [
        Picture(f"{name}.png", f"What {name} shows, for {' and '.join(HOSTILE[:2])}.", drawn)
        for name, drawn in every.items()
    ]


def all_parts():
    """Sections with every part."""
    thumbnails = [
        Thumbnail(image((40 * number, 90, 200 - 40 * number), kind="JPEG" if number % 2 else "PNG"), text, text)
        for number, text in enumerate(HOSTILE[:5])
    ]
    columns = ["patient", "label", "tiles", "probability", "difference"]
    return [
        Section("", [Paragraph("Of nothing in particular.")]),
        Section("Generated data", [Paragraph("Say nothing about patients.", lead="Caution.")], banner=True),
        Section("The run", [Table(["", ""], [["name", "a run"], *[["hostile", text] for text in HOSTILE]], names=2)]),
        Section("Performance", [Heading("Curves"), *pictures()]),
        Section(
            "Patients",
            [Table(columns, patients(), title="Patients", names=2, sortable=True, filterable=True), Bullets(HOSTILE)],
        ),
        Section("Maps", [Gallery(thumbnails, title="Most certain"), Paragraph("Beside them.")]),
        Section("Commands", [Code("\n".join(["kdml-med report RUN", *HOSTILE]))], folded=True),
        Section(MARKUP, [Paragraph(text, lead=text) for text in HOSTILE], folded=True),
        Section("Patients", [Paragraph("A heading of the same words.")]),
    ]
