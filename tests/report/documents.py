"""A document with every part that a page can hold, and names that want to be more than text."""

import dataclasses
import io

import numpy as np
import pandas as pd
from PIL import Image

from kdml_med.metrics.calibration import reliability
from kdml_med.metrics.curves import precision_recall_curve, roc_curve
from kdml_med.metrics.decision import decision_curve
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


def roc(seed=0, samples=80):
    """A ROC curve with its band, of answers that know something."""
    return roc_curve(*answers(seed, samples), resamples=200)


def answers(seed=0, samples=80):
    """Labels, and probabilities that know something of them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, samples)
    return labels, 1 / (1 + np.exp(-(1.5 + 0.4 * seed) * (labels - 0.5) - generator.standard_normal(samples)))


def froc(seed=0):
    """Something shaped like a FROC curve."""
    own = roc(seed)
    return dataclasses.replace(own, x=own.x * 3, grid=own.grid * 2)


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
            {name: roc(seed) for seed, name in enumerate(NETWORKS)},
            points={"ensemble": [("rule-out", 0.45, 0.95), ("Youden", 0.2, 0.8)]},
        ),
        "pr": curves.draw_precision_recall(
            {name: precision_recall_curve(*answers(seed), resamples=200) for seed, name in enumerate(NETWORKS)}
        ),
        "reliability": curves.draw_reliability(
            {name: reliability(*answers(seed), bins=6) for seed, name in enumerate(NETWORKS)}
        ),
        "decision": curves.draw_decision({name: decision_curve(*answers(seed)) for seed, name in enumerate(NETWORKS)}),
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
