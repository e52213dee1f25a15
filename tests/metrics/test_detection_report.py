from kdml_med.metrics import detection_results_table, evaluate_detections
from tests.metrics.detection_tables import cohort, frame_table

NETWORKS = ["ensemble", "student_0", "student_1", "student_10", "student_2", "teacher"]


def test_table_has_a_row_for_each_network_in_their_order() -> None:
    frames, detections = cohort(networks=NETWORKS)
    networks = evaluate_detections(frames, detections, threshold=0.5, resamples=30)
    networks["teacher"]["parameters"] = 23_500_000
    lines = detection_results_table({"networks": networks}).splitlines()
    assert lines[0].split("  ")[0] == "network"
    assert [line.split()[0] for line in lines[2:]] == [
        *["teacher", "student_0", "student_1", "student_2", "student_10", "ensemble"]
    ]
    figures = networks["teacher"]
    low, high = figures["ap50_ci95"]
    assert lines[2].split()[1] == "23,500,000"
    assert f"{figures['ap50']:.3f} ({low:.3f} – {high:.3f})" in lines[2]
    assert lines[2].endswith(f"{figures['froc_sensitivity_0.5']:.3f}")
    assert len({line.find("0.") > 0 for line in lines[2:]}) == 1


def test_undefined_figures_are_said_to_be() -> None:
    _, detections = cohort(frames=1)
    frames = frame_table({name: [] for name in sorted(set(detections["sample_id"]))})
    networks = evaluate_detections(frames, detections, threshold=0.5, resamples=10)
    table = detection_results_table({"networks": networks})
    assert table.splitlines()[2].count("not defined") == 4
    assert "None" not in table


def test_an_interval_without_width_is_explained() -> None:
    frames, detections = cohort(frames=2)
    networks = evaluate_detections(frames, detections.iloc[:0], threshold={"teacher": 0.5}, resamples=10)
    assert "without width" in detection_results_table({"networks": networks})
