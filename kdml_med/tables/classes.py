"""From words in tables and folder names to two classes: which is positive is read or said, never guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kdml_med.errors import InputError
from kdml_med.tables.names import plain_hyphens
from kdml_med.words import counted

if TYPE_CHECKING:
    import pandas as pd

MSI_CLASSES = ("MSS", "MSI")
"""In index order: the positive class is the last one."""
_MSI = (
    "msi, msi+, msi-h, msi high, high msi, msimut, ismsih, msi positive, msi pos, microsatellite unstable, "
    "microsatellite instable, microsatellite instability, microsatellite instability high, "
    "high microsatellite instability, dmmr, mmrd, mmr deficient, deficient mmr, mmr deficiency"
)
# MSI-L behaves like MSS in treatment and biology, and the published tile sets count it so.
_MSS = (
    "mss, msi-, msi-l, msi low, low msi, non msi, non msi h, no msi, not msi, msi negative, msi neg, "
    "microsatellite stable, microsatellite stability, pmmr, mmrp, mmr proficient, proficient mmr, mmr proficiency, "
    "mmr intact"
)
# Said of much else, too, such as of homologous recombination: what the column is about decides.
_MSI_SHORT, _MSS_SHORT = "unstable, instable, deficient", "stable, proficient, intact"
_ABOUT_MSI = re.compile("msi|mss|mmr|microsat|mikrosat")
_GENERAL = frozenset({"label", "status", "grade", "class", "group", "classfolder"})
_MISSING = (
    "not available, not applicable, not evaluated, not evaluable, not assessed, not determined, not done, "
    "not performed, not tested, not reported, not called, do not report, not allowed to collect, no data, no result, "
    "indeterminate, undetermined, msi indeterminate, msi unknown, equivocal, inconclusive, discrepancy, ambiguous, "
    "pending, missing, untested, tbd, n.a., n.d., n/d, nd, na, <na>, n/a, nan, none, null, unknown, #n/a, #nv"
)
_ONLY_MARKS = re.compile(r"[-.?/…*]+")
_PARTS = re.compile(r"[/|,;&()\[\]]")


def plain_word(text: str) -> str:
    """A word as it is compared: without case, separators, brackets around it and the ways to write a hyphen.

    A sign at the end stays, "MSI-" is not "MSI", and so does one between digits.
    """
    word = plain_hyphens(text).replace("\u00ad", "").casefold().strip()
    word = word.strip("[](){}<>\"'").strip()
    return re.sub(r"(?<=.)[\s_-]+(?=.)", _keep_between_digits, word)


def _keep_between_digits(separator: re.Match[str]) -> str:
    """G1-2 is not G12."""
    word = separator.string
    return "-" if word[separator.start() - 1].isdigit() and word[separator.end()].isdigit() else ""


def _meanings(positive: str, negative: str) -> dict[str, str]:
    words = ((positive, MSI_CLASSES[1]), (negative, MSI_CLASSES[0]))
    return {plain_word(word): name for text, name in words for word in text.split(", ")}


_OWN_WORDS = _meanings(_MSI, _MSS)
_ALL_WORDS = _OWN_WORDS | _meanings(_MSI_SHORT, _MSS_SHORT)
_NO_CLASS = {plain_word(word) for word in _MISSING.split(", ")}


def is_missing(word: str) -> bool:
    """Whether a cell says that nothing is known: blank, [Not Available], '--, indeterminate, equivocal and the like."""
    plain = plain_word(word)
    return not plain or plain in _NO_CLASS or _ONLY_MARKS.fullmatch(plain) is not None


def _vocabulary(column: str, words: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """What the words of a column mean, as far as they are words of the field.

    A word made of several, such as "MSI-H/dMMR" or "stable (MSS)", is one where all of them mean the same.
    """
    name = plain_word(column)
    known = _ALL_WORDS if _ABOUT_MSI.search(name) or name in _GENERAL else _OWN_WORDS
    found = dict(known)
    for word, text in zip(words, texts, strict=True):
        parts = [plain_word(part) for part in _PARTS.split(text) if part.strip()]
        meant = {known.get(part) for part in parts}
        if word not in known and len(parts) > 1 and len(meant) == 1 and None not in meant:
            found[word] = known[parts[0]]
    return found


def parse_labels(
    values: pd.Series[str], classes: Sequence[str] | None, *, where: str
) -> tuple[pd.Series[str], list[str]]:
    """Class name of each row (None where nothing is known) and the two classes in index order.

    Words of the field become "MSS" and "MSI" in that order, in any spelling of case, space and hyphen: MSI-H, MSI-High,
    MSIMUT, dMMR, deficient or unstable are MSI; MSS, MSI-L, nonMSIH, pMMR, proficient, stable or intact are MSS. Short
    words such as deficient or stable count in a column that is about MSI or MMR, or is named in general ("status").
    Other words need ``classes``. Two spellings of one word are one class. A word that is named as a class is one, also
    where it says elsewhere that nothing is known.

    Args:
        values: text; the index is the row in the file, the name is the column.
        classes: two class names, the positive one last; one name is that of the positive class; None for words of the
            field.
        where: the file, for messages.

    Raises:
        InputError: not exactly two classes, nothing says which is positive, or a value is not one of them.
    """
    plain = values.map(plain_word)
    missing = values.map(is_missing) & ~plain.isin([plain_word(name) for name in classes or ()])
    if (plain == "+").any():
        missing &= plain != "-"
    found = _spellings(values[~missing], plain[~missing])
    vocabulary = _vocabulary(str(values.name), found.keys(), found.values())
    unknown = [word for word in found if word not in vocabulary]
    if classes is not None and len(classes) == 1:
        classes = _with_other(classes[0], found, vocabulary, f"{where}, column {values.name!r}")
    if classes is not None:
        names = _checked(classes)
        index = {plain_word(name): name for name in names}
        if set(names) == set(MSI_CLASSES):
            index = _ALL_WORDS | vocabulary | index
    elif found and not unknown:
        names, index = list(MSI_CLASSES), vocabulary
    else:
        raise InputError(_ask(found, unknown, values, plain, where))
    labels = plain.map(index).astype(object).where(~missing, None)
    bad = values[~missing & labels.isna()]
    if len(bad):
        raise InputError(
            f"{where}, {_place(bad.index[0])}: {values.name} is {bad.iloc[0]!r}, expected one of {names} or a blank. "
            f"{_advice(bad.index[0])}, or name other classes with --classes ({len(bad)} such values)."
        )
    return labels.where(labels.notna(), None), names


def named_classes(classes: tuple[str, str] | None, positive: str | None) -> tuple[str, ...] | None:
    """What ``--classes`` and ``--positive`` say, for ``parse_labels``.

    Raises:
        InputError: they contradict each other.
    """
    if classes is not None and positive is not None and plain_word(classes[1]) != plain_word(positive):
        raise InputError(f"--positive is {positive!r}, but --classes names {classes[1]!r} last: leave one of them out.")
    return classes if classes is not None else None if positive is None else (positive,)


def describe_classes(rows: pd.DataFrame, classes: Sequence[str], *, owner: str = "patient") -> str:
    """One line that says which class is the positive one, and how many patients there are of each.

    Args:
        rows: of a manifest, columns patient_id and label.
        classes: class names in index order.
        owner: what a patient_id is called.
    """
    patients = {name: rows["patient_id"][rows["label"] == name].nunique() for name in classes}
    unlabelled = rows["patient_id"][rows["label"].isna()].nunique()
    others = ", ".join(f"{name} {patients[name]}" for name in classes[:-1])
    text = f"positive class {classes[-1]}: {counted(patients[classes[-1]], owner)}; {others}"
    return text + (f"; without a class {unlabelled}" if unlabelled else "")


def _spellings(values: pd.Series[str], plain: pd.Series[str]) -> dict[str, str]:
    """The usual spelling of each word: the most frequent one, the first of equals by the alphabet; sorted by word."""
    counts: dict[str, Counter[str]] = {}
    for word, text in zip(plain, values, strict=True):
        counts.setdefault(word, Counter())[text] += 1
    return {word: min(counts[word], key=lambda text: (-counts[word][text], text)) for word in sorted(counts)}


def _place(index: object) -> str:
    """A row by its number, a class folder by its name."""
    return f"folder {index}" if isinstance(index, str) else f"row {index}"


def _advice(index: object) -> str:
    return "Rename the folder, move it away" if isinstance(index, str) else "Correct the value, leave it blank"


def _with_other(positive: str, found: dict[str, str], vocabulary: dict[str, str], where: str) -> list[str]:
    """Both classes where only the positive one was said."""
    wanted = plain_word(positive)
    if wanted in vocabulary and all(word in vocabulary for word in found):
        name = vocabulary[wanted]
        return [next(other for other in MSI_CLASSES if other != name), name]
    others = [text for word, text in found.items() if word != wanted]
    if wanted not in found or len(others) != 1:
        raise InputError(
            f"{where}: --positive is {positive!r}, found {_shown(list(found.values()))}; expected that word and "
            "exactly one other. Name both with --classes NEGATIVE POSITIVE, and leave the status of other rows blank."
        )
    return [others[0], found[wanted]]


def _checked(classes: Sequence[str]) -> list[str]:
    if len(classes) != 2 or len({plain_word(name) for name in classes}) != 2:
        raise InputError(f"classes {list(classes)}: exactly two different names are needed, the positive one last.")
    return list(classes)


def _ask(
    found: dict[str, str], unknown: Sequence[str], values: pd.Series[str], plain: pd.Series[str], where: str
) -> str:
    """What to say where words do not tell two classes, or which of them is positive."""
    texts = list(found.values())
    if not found:
        said = _shown(list(dict.fromkeys(values)))
        return f"{where}, column {values.name!r}: no row has a class, as far as known words tell: {said}."
    if len(found) == 2 and len(unknown) == 2:
        return (
            f"{where}, column {values.name!r}: nothing says which of {texts[0]!r} and {texts[1]!r} is the positive "
            f"class. Say which: --positive {texts[0]!r} or --positive {texts[1]!r}."
        )
    if unknown and len(unknown) < len(found):
        row = plain.index[plain == unknown[0]][0]
        return (
            f"{where}, {_place(row)}: {values.name} is {found[unknown[0]]!r}, which is no word for MSI or MSS, as "
            f"others are. {_advice(row)}, or name two classes with --classes ({len(unknown)} such words)."
        )
    return (
        f"{where}, column {values.name!r}: exactly two classes are needed, found {len(found)}: {_shown(texts)}. Name "
        "two with --classes A B (the positive one last) and leave the status of the other rows blank."
    )


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:8])) + (", …" if len(texts) > 8 else "")
