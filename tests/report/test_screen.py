from kdml_med.metrics import evaluate_detections
from kdml_med.report.screen import detection_results_table, results_table
from tests.metrics.detection_tables import cohort, frame_table

NETWORKS = ["ensemble", "student_0", "student_1", "student_10", "student_2", "teacher"]


def detected(networks):
    return {"bootstrap": {"unit": "frame"}, "networks": networks}


def test_table_has_a_row_for_each_network_in_their_order() -> None:
    frames, detections = cohort(networks=NETWORKS)
    networks = evaluate_detections(frames, detections, threshold=0.5, resamples=30)
    networks["teacher"]["parameters"] = 23_500_000
    lines = detection_results_table(detected(networks)).splitlines()
    assert lines[0].split("  ")[0] == "network"
    assert [line.split()[0] for line in lines[2:8]] == [
        *["teacher", "student_0", "student_1", "student_2", "student_10", "ensemble"]
    ]
    figures = networks["teacher"]
    low, high = figures["ap50_ci95"]
    assert lines[2].split()[1] == "23,500,000"
    assert f"{figures['ap50']:.3f} ({low:.3f} – {high:.3f})" in lines[2]
    assert lines[2].endswith(f"{figures['froc_sensitivity_0.5']:.3f}")
    assert len({line.find("0.") > 0 for line in lines[2:8]}) == 1


def test_undefined_figures_are_said_to_be() -> None:
    _, detections = cohort(frames=1)
    frames = frame_table({name: [] for name in sorted(set(detections["sample_id"]))})
    networks = evaluate_detections(frames, detections, threshold=0.5, resamples=10)
    table = detection_results_table(detected(networks))
    assert table.splitlines()[2].count("not defined") == 4
    assert "None" not in table


def test_an_interval_without_width_is_explained() -> None:
    frames, detections = cohort(frames=2)
    networks = evaluate_detections(frames, detections.iloc[:0], threshold={"teacher": 0.5}, resamples=10)
    assert "without width" in detection_results_table(detected(networks))


def classified(*intervals):
    """Figures of a teacher and a student, in the wrong order."""
    return {
        "level": "slide",
        "classes": ["MSS", "MSI"],
        "bootstrap": {"unit": "patient", "units": 300},
        "networks": {
            name: {
                "parameters": 1_234_567,
                "tile": {"auroc": None},
                "slide": {"auroc": 0.5, "auroc_ci95": interval, "accuracy": 0.75, "n": 300, "positives": 150},
            }
            for name, interval in zip(["student_0", "teacher"], intervals, strict=True)
        },
    }


def test_classifiers_are_listed_with_figures_of_tiles_and_of_what_they_are_aggregated_to() -> None:
    assert results_table(classified((0.25, 0.875), (None, None))).split("\n") == [
        "network    parameters  tile AUROC   slide AUROC  95 % interval  slide accuracy",
        "---------  ----------  -----------  -----------  -------------  --------------",
        "teacher    1,234,567   not defined  0.500        not defined    0.750",
        "student_0  1,234,567   not defined  0.500        0.250 – 0.875  0.750",
    ]


def test_few_slides_are_cautioned_before_anybody_believes_an_interval() -> None:
    metrics = classified((0.0, 1.0), (0.5, 0.5))
    for figures in metrics["networks"].values():
        figures["slide"] |= {"n": 4, "positives": 2}
    caution, narrow = results_table(metrics).split("\n\n")[1].split("\n")
    assert caution.startswith("Caution: Only 2 MSI slides and 2 MSS slides:")
    assert narrow.startswith("An interval without width")


def test_few_boxes_are_cautioned_too() -> None:
    frames, detections = cohort(frames=3)
    networks = evaluate_detections(frames, detections, threshold=0.5, resamples=10)
    assert "Caution: Only" in detection_results_table(detected(networks))


def test_an_interval_of_slides_without_width_is_explained() -> None:
    assert results_table(classified((0.5, 0.5), (0.25, 0.875))).endswith(
        "\n\nAn interval without width: no resample differs, as where all is right. The true one is wider."
    )
    assert "without width" not in results_table(classified((0.5, 0.75), (None, None)))
