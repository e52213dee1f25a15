import os
import unicodedata
from pathlib import Path

import pytest

from kdml_med.errors import InputError
from kdml_med.tables.labels import LabelMatch, LabelTable, read_labels
from kdml_med.tables.names import is_tcga_normal, slide_name


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def patients_of(table: LabelTable) -> list[str]:
    return sorted({match.patient_id for match in table.matches.values()})


@pytest.mark.parametrize(
    ("status", "label"),
    [
        ("MSI-H", "MSI"),
        ("msi", "MSI"),
        ("MSIMUT", "MSI"),
        ("dMMR", "MSI"),
        ("MSS", "MSS"),
        ("MSI-L", "MSS"),
        ("nonMSIH", "MSS"),
        ("pMMR", "MSS"),
        ("", None),
        ("NA", None),
        ("unknown", None),
    ],
)
def test_msi_words_become_two_classes(tmp_path: Path, status: str, label: str | None) -> None:
    table = read_labels(write(tmp_path, f"patient,status\np1,{status}\np2,MSS\n"))
    match = table.match("p1")
    assert table.classes == ["MSS", "MSI"]
    assert match is not None
    assert match.label == label


def test_which_of_other_words_is_positive_has_to_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, "patient_id\tgrade\n1\tmalignant\n2\tbenign\n", "labels.tsv")
    with pytest.raises(InputError, match="nothing says which of 'benign' and 'malignant' is the positive class"):
        read_labels(path)
    assert read_labels(path, classes=["malignant"]).classes == ["benign", "malignant"]
    assert read_labels(path, classes=["malignant", "benign"]).classes == ["malignant", "benign"]


def test_named_classes_keep_the_words_of_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,status\np1,MSI-L\np2,MSI-H\n")
    assert read_labels(path, classes=["MSI-L", "MSI-H"]).match("p1") == LabelMatch("p1", "MSI-L", None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_and_byte_order_mark_are_recognised(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(f"\ufeffCase ID{delimiter}Status\r\n007{delimiter}MSS\r\n".encode())
    assert patients_of(read_labels(path)) == ["007"]


def test_slide_belongs_to_the_longest_patient_id_that_ends_at_a_separator(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "patient,label\nP1,a\nP1-B,b\nTCGA-AA-3672,a\n"), classes=["b"])
    found = {slide: table.match(slide) for slide in ("P1", "P1-B_2.svs", "P1_B.svs", "P12", "XP1", "P1-Bx")}
    assert {slide: match and match.patient_id for slide, match in found.items()} == {
        "P1": "P1",
        "P1-B_2.svs": "P1-B",
        "P1_B.svs": "P1",
        "P12": None,
        "XP1": None,
        "P1-Bx": "P1",
    }
    barcode = table.match("TCGA-AA-3672-01Z-00-DX1.2a81cf11-4c16")
    assert barcode == LabelMatch("TCGA-AA-3672", "a", "AA")


def test_slide_column_is_compared_without_suffix(tmp_path: Path) -> None:
    table = read_labels(
        write(tmp_path, "patient,slide,label,mpp,site\np1,a/s.1.svs,x,0.25,north\np1,s2.ome.tiff,x,,\np2,s3,y,,\n"),
        classes=["y"],
    )
    assert table.match("s.1") == LabelMatch("p1", "x", "north")
    assert table.match("scans/a/s.1.ndpi") == LabelMatch("p1", "x", "north")
    assert table.match("s2") == LabelMatch("p1", "x", None)
    assert table.match("p1") is None
    assert (table.mpp("s.1"), table.mpp("s2"), table.mpp("other")) == (0.25, None, None)


def test_listed_barcode_fits_a_file_name_with_its_uuid(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "patient,slide,label\nTCGA-AA-3672,TCGA-AA-3672-01Z-00-DX1,MSS\n"))
    assert table.match("TCGA-AA-3672-01Z-00-DX1.2a81cf11.svs") is not None
    assert table.match("TCGA-AA-3672-01Z-00-DX2.2a81cf11.svs") is None


def test_label_of_a_patient_speaks_for_its_unlabelled_slides(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,slide,label\np1,s1,\np1,s2,MSI\np2,s3,MSS\n")
    patient, slide = (read_labels(path, label_level=level).match("s1") for level in ("patient", "slide"))
    assert patient is not None
    assert slide is not None
    assert (patient.label, slide.label) == ("MSI", None)


def test_slides_of_a_patient_may_differ_at_slide_level(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,slide,label\np1,s1,benign\np1,s2,malignant\n")
    table = read_labels(path, label_level="slide", classes=["malignant"])
    assert table.match("s2") == LabelMatch("p1", "malignant", None)
    with pytest.raises(InputError, match=r"'p1' has the labels 'benign' \(row 2\) and 'malignant' \(row 3\)"):
        read_labels(path, classes=["malignant"])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("who,label\np,a\n", {}, r"no patient column recognised.*\['who', 'label'\]"),
        ("patient,what\np,a\n", {}, "no label column recognised"),
        ("patient,case_id,label\np,q,a\n", {}, r"\['patient', 'case_id'\] could each be the patient column"),
        ("patient,label\np,a\n", {"label_column": "MSI"}, "no column 'MSI'"),
        ("patient,label\np,a\nq,b\nr,c\n", {}, "found 3: 'a', 'b', 'c'"),
        ("patient,label\np,a\nq,a\n", {}, "found 1: 'a'"),
        ("patient,label\np,\n", {}, "no row has a class"),
        ("patient,label\np,a\n\nq,c\n", {"classes": ["a", "b"]}, "row 4: label is 'c'"),
        ("patient,label\np,a\n", {"classes": ["a"]}, "expected that word and exactly one other"),
        ("patient,label\np,a\nq,b\n", {"classes": ["c"]}, "--positive is 'c', found 'a', 'b'"),
        ("patient,label\np,a\n", {"classes": ["a", "A "]}, "exactly two different names"),
        ("patient,label\np,MSI\nq,MSS\nr,MSX\n", {}, "row 4: label is 'MSX', which is no word for MSI or MSS"),
        ("patient,label\np,0\nq,1\n", {}, "nothing says which of '0' and '1'"),
        ("patient,label\np,MSS\n,MSI\n", {}, "row 3: no patient id"),
        ("patient,label\np,MSS\nq,MSI\np,MSS\n", {}, r"patient 'p' is in rows \[2, 4\]"),
        ("patient,slide,label\np,s.svs,MSS\np,s.tif,MSS\n", {}, r"slide 's' is in rows \[2, 3\]"),
        ("patient,slide,label\np,,MSS\n", {}, "row 2: no slide name"),
        ("patient,label\np,MSS\n", {"label_level": "slide"}, "no slide column"),
        ("patient,label\np,MSS\n", {"label_level": "tile"}, "label level 'tile'"),
        ("patient,label,mpp\np,MSS,-1\n", {}, "row 2: mpp is '-1'"),
        ("patient,label,mpp\np,MSS,fine\n", {}, "row 2: mpp is 'fine'"),
        ("patient,label\np,MSS,x\n", {}, "row 2: 3 cells, but the header in row 1 has 2"),
        ("patient,label,label\np,a,b\n", {}, "more than once"),
        ("patient,label\n", {}, "no rows"),
        ("", {}, "no rows"),
    ],
)
def test_error_names_what_to_correct(
    tmp_path: Path, text: str, options: dict[str, str | list[str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(write(tmp_path, text), **options)  # type: ignore[arg-type]


def test_unreadable_table_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the table"):
        read_labels(tmp_path / "absent.csv")


def test_only_image_suffixes_are_cut_off() -> None:
    assert slide_name("C:\\slides\\TCGA-AA-3672-01Z-00-DX1.2a81cf11.svs") == "TCGA-AA-3672-01Z-00-DX1.2a81cf11"
    assert slide_name("scan.v2") == "scan.v2"


@pytest.mark.real_data
def test_published_status_table_is_read_as_it_is() -> None:
    root = os.environ.get("KDML_MED_DATA")
    path = Path(root or "") / "histology" / "tcga_crc_msi_status.csv"
    if not root or not path.is_file():
        pytest.skip("the research data folder is not at hand; KDML_MED_DATA names it")
    table = read_labels(path)
    labels = [match.label for match in table.matches.values()]
    assert {label: labels.count(label) for label in ("MSS", "MSI", None)} == {"MSS": 389, "MSI": 65, None: 174}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("by_slide", [False, True])
def test_names_of_either_unicode_form_meet(tmp_path: Path, form: str, by_slide: bool) -> None:
    table = "patient,slide,label\nMüller,Müller_A.svs,MSI\n" if by_slide else "patient,label\nMüller,MSI\n"
    labels = read_labels(write(tmp_path, unicodedata.normalize(form, table)))
    for other in ("NFC", "NFD"):
        assert labels.match(unicodedata.normalize(other, "Müller_A.svs")) == LabelMatch("Müller", "MSI")


def test_a_mark_over_a_letter_does_not_end_an_id(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "patient,label\nMx,MSI\n"))
    assert table.match("Mx\u0302_A.svs") is None  # there is no single character for this one
    assert table.match("Mx_A.svs") is not None


@pytest.mark.parametrize(
    ("rows", "patient"),
    [
        ("P1,MSI\np1,MSS\n", r"'P1' \(row 2\) and 'p1' \(row 3\)"),
        ("P-1,MSI\nP\u20111,MSI\n", r"'P-1' \(row 2\) and 'P\u20111' \(row 3\)"),
        ("A  B,MSI\nA B,MSI\n", r"'A  B' \(row 2\) and 'A B' \(row 3\)"),
    ],
)
def test_two_spellings_of_one_patient_are_refused(tmp_path: Path, rows: str, patient: str) -> None:
    with pytest.raises(InputError, match=f"the patients {patient} differ only by case, space, hyphen or a #"):
        read_labels(write(tmp_path, "patient,label\n" + rows))


@pytest.mark.parametrize(
    ("one", "other"),
    [("7", "007"), ("7", "7.0"), ("007", "7,00"), ("p 07", "P 7"), ("P1", "P01"), ("1-011", "01-11"), ("0", "000")],
)
def test_an_id_that_a_spreadsheet_made_a_number_of_is_no_second_patient(tmp_path: Path, one: str, other: str) -> None:
    said = rf"the patients '{one}' \(row 2\) and '{other}' \(row 4\) differ only by zeros .*two patients, rename one"
    with pytest.raises(InputError, match=said):
        read_labels(write(tmp_path, f"patient;label\n{one};MSI\nB;MSS\n{other};MSI\n"))


def test_samples_of_one_patient_are_no_patients(tmp_path: Path) -> None:
    rows = "TCGA-AA-3672-01,MSI\nTCGA-AA-3673-01,MSS\nTCGA-AA-3672-06,MSI\n"
    with pytest.raises(
        InputError, match=r"'TCGA-AA-3672-01' \(row 2\) and 'TCGA-AA-3672-06' \(row 4\) are TCGA samples"
    ):
        read_labels(write(tmp_path, "patient,label\n" + rows))
    assert len(read_labels(write(tmp_path, "patient,label\n" + rows.replace("3672-06", "3674-01"))).matches) == 3


def test_one_patient_in_two_unicode_forms_is_one_patient(tmp_path: Path) -> None:
    rows = f"{unicodedata.normalize('NFD', 'Müller')},a.svs,MSI\nMüller\u00a0,b.svs,\nX,c.svs,MSS\n"
    table = read_labels(write(tmp_path, "patient,slide,label\n" + rows))
    assert patients_of(table) == ["Müller", "X"]
    assert table.match("b") == LabelMatch("Müller", "MSI")


def test_ids_that_differ_by_more_stay_apart(tmp_path: Path) -> None:
    ids = [
        "7",
        "70",
        "700",
        "7.5",
        "P1",
        "P10",
        "P1_0",
        "P1-0",
        "P 1",
        "1-11",
        "11-1",
        "1.0.1",
        "0",
        "v.0",
        "v",
        "2020.05",
        "2020.5",
        "v1.0",
        "v1.00",
    ]
    table = read_labels(write(tmp_path, "patient,label\n" + "".join(f"{name},MSI\n" for name in ids)))
    assert {name: table.match(name + ".svs").patient_id for name in ids} == {name: name for name in ids}  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["1.23457E+11", "1,2E+05", "#N/A", "#REF!", "None", "<NA>"])
def test_ids_that_a_program_destroyed_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"row 3: .*patient id"):
        read_labels(write(tmp_path, f"patient;label\nP1;MSI\n{value};MSS\n"))


@pytest.mark.parametrize(
    ("listed", "slide", "same"),
    [
        ("s1.svs", "in/b/s1.svs", True),
        ("b/s1.svs", "in/b/s1.svs", True),
        ("in/b/s1.svs", "in/b/s1.svs", True),
        ("a/s1.svs", "in/b/s1.svs", False),
        ("a/s1.svs", "b/s1.svs", False),  # the input is the folder b
        ("D:\\archive\\b\\s1.svs", "in/b/s1.svs", True),
        ("D:\\archive\\a\\s1.svs", "in/b/s1.svs", False),
        ("/archive/scans/s1.svs", "in/s1.svs", True),  # the archive was moved: all listed slides are in /archive/scans
        ("a/b/s1.svs", "in/c/b/s1.svs", False),
        ("../x/b/s1.svs", "in/b/s1.svs", False),
    ],
)
def test_slides_of_one_name_in_different_folders_never_meet(
    tmp_path: Path, listed: str, slide: str, same: bool
) -> None:
    table = read_labels(write(tmp_path, f"patient,slide,label\nP1,{listed},MSI\n"))
    inside, _, below = slide.partition("/")
    assert (table.match(below, inside) is not None) == same
    if not same:
        assert "row 2 of the label table" in table.explain(below, inside)
        assert "another folder than" in table.explain(below, inside)


def test_folders_in_which_listed_slides_differ_count_for_the_input_itself(tmp_path: Path) -> None:
    rows = "P1,/archive/case1/s1.svs,MSI\nP2,/archive/case2/s2.svs,MSS\n"
    table = read_labels(write(tmp_path, "patient,slide,label\n" + rows))
    assert table.match("s1.svs", "case1") == LabelMatch("P1", "MSI")
    assert table.match("s1.svs", "case9") is None


@pytest.mark.parametrize(
    ("ids", "slide", "hint"),
    [("7", "007_A", "row 2 has '7'"), ("p-1", "P\u20111_A", "row 2 has 'p-1'"), ("7.0", "7_A", "row 2 has '7.0'")],
)
def test_a_slide_without_a_row_is_told_of_one_that_looks_like_it(
    tmp_path: Path, ids: str, slide: str, hint: str
) -> None:
    table = read_labels(write(tmp_path, f"patient,label\n{ids},MSI\n"))
    assert table.match(slide) is None
    assert table.explain(slide) == f"no row in the label table for {slide}; {hint}"
    assert table.explain("other") == "no row in the label table for other"


def test_label_column_cannot_be_the_patient_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'MSI' is named for the label and for the patient"):
        read_labels(write(tmp_path, "MSI,x\nMSI,a\nMSS,b\n"), patient_column="MSI", label_column="MSI")


def test_columns_and_words_are_kept_for_the_record(tmp_path: Path) -> None:
    text = "Case ID,Status\n" + "P1,MSI-H\nP2,MSI-L\nP3,MSI-L\nP4,[Not Available]\nP5,MSS\n"
    source = read_labels(write(tmp_path, text)).source
    assert (source.table, source.columns) == ("labels.csv", {"patient": "Case ID", "label": "Status"})
    assert source.words == {"MSI-H": ("MSI", 1), "MSI-L": ("MSS", 2), "MSS": ("MSS", 1), "[Not Available]": (None, 1)}


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("TCGA-AA-3672-11A-01-TS1", True),
        ("blk-X-TCGA-AA-3672-10A-01", True),
        ("tcga-aa-3672-14a", True),
        ("TCGA-AA-3672-01A-01-TS1", False),
        ("TCGA-AA-3672-06A", False),
        ("TCGA-AA-3672-20A", False),
        ("TCGA-AA-3672-110", False),
        ("TCGA-AA-3672", False),
        ("P-11A", False),
    ],
)
def test_normal_tissue_is_told_by_the_sample_type(name: str, normal: bool) -> None:
    assert is_tcga_normal(name) == normal


@pytest.mark.parametrize("nobody", ["[Not Available]", "'--", "-", "?", "TBD", "Not reported"])
def test_words_for_nothing_are_no_patient(tmp_path: Path, nobody: str) -> None:
    with pytest.raises(InputError, match=r"row 3: no patient id in column 'patient', but .* \(2 such rows\)"):
        read_labels(write(tmp_path, f"patient,slide,label\nP1,a,MSI\n{nobody},b,MSS\n{nobody},c,MSS\n"))


@pytest.mark.parametrize("other", ["TCGA.AA.3672", "tcga_aa_3672", "TCGA.AA.3672.01A"])
def test_a_tcga_patient_in_another_programs_spelling_is_no_second_patient(tmp_path: Path, other: str) -> None:
    with pytest.raises(InputError, match="are TCGA samples of one patient"):
        read_labels(write(tmp_path, f"patient,label\nTCGA-AA-3672,MSI\n{other},MSS\n"))


@pytest.mark.parametrize(
    ("mpp", "right"),
    [("0.25", True), (".5", True), ("5e-1", True), ("8", True)]
    + [(word, False) for word in ("0", "500", "40", "20", "10", "2.5e-7", "0_2", "inf", "0,25", "-0.25", "0.25 um")],
)
def test_a_resolution_is_one_that_can_be(tmp_path: Path, mpp: str, right: bool) -> None:
    path = write(tmp_path, f'patient,slide,label,mpp\nP1,a,MSI,"{mpp}"\nP2,b,MSS,\n')
    if right:
        assert read_labels(path).mpp("a") == float(mpp)
    else:
        with pytest.raises(InputError, match=r"row 2: mpp is .* from 0.05 to 9"):
            read_labels(path)


def test_sites_are_one_in_any_spelling_and_words_for_nothing_are_none(tmp_path: Path) -> None:
    sites = ["Mainz", "MAINZ ", "mainz", "[Not Available]", "not reported"]
    rows = "".join(f"{'P' if n < 4 else 'TCGA-AA-000'}{n},MSI,{site}\n" for n, site in enumerate(sites))
    table = read_labels(write(tmp_path, "patient,label,site\n" + rows))
    assert [match.site for match in table.matches.values()] == ["Mainz", "Mainz", "Mainz", None, "AA"]


def test_a_slide_of_a_listed_tcga_patient_gets_a_hint(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "patient,label\nTCGA-AA-3672-01,MSI\nX,MSS\n"))
    assert table.explain("TCGA-AA-3672-01Z-00-DX1.svs").endswith("; row 2 has 'TCGA-AA-3672-01'")
