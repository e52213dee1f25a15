import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.pictures.grad_cam import grad_cam, mean_grad_cam
from kdml_med.engines.precision import Kind, kind_of
from kdml_med.errors import InputError
from kdml_med.experiments.costs import multiply_accumulates
from kdml_med.keys import network_order
from kdml_med.losses import ClassificationCohortLoss, DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort, build_network
from kdml_med.networks.anchors import AnchorPredictions
from kdml_med.networks.answers import CommitteeAnswer
from kdml_med.networks.boxes import average_anchors, decode_anchors
from kdml_med.networks.cohort import load_trained
from kdml_med.networks.committee import Committee, mean_answer
from kdml_med.networks.recomputing import recompute_activations
from kdml_med.networks.registry import architecture_words
from kdml_med.networks.remembered import RememberedTeacher
from tests.examples import examples
from tests.networks.test_remembered import Kept
from tests.networks.tiny import PLAIN, STAGED, STEADY_DETECTOR, TINY

WIDE = {"name": TINY, "width": 8}
PAIR = {"name": "committee", "members": [WIDE, PLAIN]}
STAGED_PAIR = {"name": "committee", "members": [STAGED, STAGED]}
DETECTOR = {"name": "retinanet", "body": "mobilenet_v2", "width": 16, "head_convs": 1, "last_block": 13}
DETECTORS = {"name": "committee", "members": [DETECTOR, DETECTOR | {"width": 32}]}
LABELS = torch.tensor([0, 1, 1, 0])


def images(seed=0, batch=4, side=16):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def cohort(teacher=PAIR, students=(TINY, TINY), **kwargs):
    return build_cohort(teacher=teacher, students=list(students), **kwargs)


def same(network, other):
    state, others = network.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(state[name], others[name]) for name in state)


def gradients(network):
    return [parameter.grad for parameter in network.parameters()]


probabilities = st.lists(st.lists(st.floats(0.001, 0.999), min_size=3, max_size=3), min_size=2, max_size=4)


@settings(max_examples=examples(50))
@given(probabilities)
def test_a_committee_of_classifiers_says_the_mean_of_their_probabilities(shares):
    logits = [torch.tensor([own]).log() for own in shares]
    mean = torch.stack([F.softmax(own, dim=1) for own in logits]).mean(dim=0)
    assert torch.allclose(F.softmax(mean_answer(logits), dim=1), mean, atol=1e-6)


@settings(max_examples=examples(50))
@given(st.lists(st.floats(-60, 60), min_size=2, max_size=4))
def test_a_committee_of_detectors_says_the_mean_of_their_scores_also_next_to_0_and_1(logits):
    answers = [AnchorPredictions(torch.tensor([[[own]]]), torch.full((1, 1, 4), own)) for own in logits]
    mean = mean_answer(answers)
    exact = torch.tensor(logits, dtype=torch.float64)
    assert torch.allclose(mean.logits.double().sigmoid(), exact.sigmoid().mean(), rtol=1e-4, atol=0)
    assert torch.allclose((-mean.logits.double()).sigmoid(), (-exact).sigmoid().mean(), rtol=1e-4, atol=0)
    assert torch.allclose(mean.deltas, torch.full((1, 1, 4), sum(logits) / len(logits)), atol=1e-5)


def test_members_that_agree_say_what_each_of_them_says():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert torch.allclose(mean_answer([logits, logits]), F.log_softmax(logits, dim=1))
    twice = mean_answer([AnchorPredictions(logits[..., None], torch.zeros(1, 3, 4))] * 2)
    assert torch.allclose(twice.logits, logits[..., None])


def test_a_hand_worked_mean():
    # 0.9 and 0.5 for the first class: 0.7; odds 7 to 3.
    mean = mean_answer([torch.tensor([[9.0, 1.0]]).log(), torch.zeros(1, 2)])
    assert torch.allclose(mean, torch.tensor([[0.7, 0.3]]).log())


def test_in_use_a_committee_answers_as_one_network():
    network = build_network(PAIR, num_classes=2).eval()
    with torch.no_grad():
        answer = network(images())
        members = [F.softmax(member(images()), dim=1) for member in network.members]
    assert torch.allclose(answer.exp(), torch.stack(members).mean(dim=0), atol=1e-6)


def test_scores_and_boxes_of_detectors_are_means_anchor_by_anchor():
    network = build_network(DETECTORS, num_classes=1).eval()
    image = images(batch=1, side=64)
    with torch.no_grad():
        answer = network(image)
        members = [member(image) for member in network.members]
    wanted = average_anchors([decode_anchors(own, 64, 64) for own in members])
    assert torch.allclose(decode_anchors(answer, 64, 64).scores, wanted.scores, atol=1e-6)
    assert torch.allclose(answer.deltas, (members[0].deltas + members[1].deltas) / 2, atol=1e-6)


def test_in_training_each_member_speaks_for_itself_and_nobody_learns_through_the_mean():
    network = build_network(PAIR, num_classes=2)
    answer = network(images())
    assert isinstance(answer, CommitteeAnswer)
    assert not answer.mean.requires_grad
    assert [own.requires_grad for own in answer.members] == [True, True]


def test_each_member_learns_as_it_would_alone():
    together = cohort(seed=3)
    ClassificationCohortLoss()(together(images()), LABELS)["loss"].backward()
    for number, spec in enumerate(PAIR["members"]):
        stream = {"name": spec} if isinstance(spec, str) else spec
        alone = cohort(stream | {"stream": f"teacher_{number}"}, seed=3)
        ClassificationCohortLoss()(alone(images()), LABELS)["loss"].backward()
        own, other = together.networks["teacher"].members[number], alone.networks["teacher"]
        for mine, wanted in zip(gradients(own), gradients(other), strict=True):
            assert torch.equal(2 * mine, wanted)  # of the mean of two losses; AdamW does not care


def test_students_learn_from_the_mean_and_the_teacher_from_labels_alone():
    predictions = cohort()(images())
    terms = ClassificationCohortLoss(temperature=1.0)(predictions, LABELS)
    tasks = [F.cross_entropy(own, LABELS) for own in predictions["teacher"].members]
    assert torch.allclose(terms["teacher_task"], sum(tasks) / 2)
    mean = torch.stack([F.softmax(own, dim=1) for own in predictions["teacher"].members]).mean(dim=0)
    wanted = F.kl_div(F.log_softmax(predictions["student_0"], dim=1), mean, reduction="batchmean")
    assert torch.allclose(terms["student_0_kd"], wanted, atol=1e-6)


def test_a_committee_can_be_a_student_whose_members_learn_each():
    network = build_cohort(teacher=TINY, students=[PAIR, TINY])
    predictions = network(images())
    terms = ClassificationCohortLoss()(predictions, LABELS)
    for term in ("task", "kd", "ml"):
        singles = [
            ClassificationCohortLoss()({**predictions, "student_0": own}, LABELS)[f"student_0_{term}"]
            for own in predictions["student_0"].members
        ]
        assert torch.allclose(terms[f"student_0_{term}"], sum(singles) / 2)


def test_detectors_learn_in_a_committee():
    network = build_cohort(task="detection", teacher=DETECTORS, students=[DETECTOR, DETECTOR], num_classes=1)
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.zeros(0, 4)]
    predictions = network(images(batch=2, side=64))
    loss = DetectionCohortLoss(teacher_link="both")
    terms = loss(predictions, (boxes, (64, 64)))
    terms["loss"].backward()
    assert all(grad is not None for grad in gradients(network.networks["teacher"]))
    singles = [loss({**predictions, "teacher": own}, (boxes, (64, 64))) for own in predictions["teacher"].members]
    assert torch.allclose(terms["teacher_task"], (singles[0]["teacher_task"] + singles[1]["teacher_task"]) / 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_feature_maps_of_every_member_are_learned_from(frozen, tmp_path):
    loss = ClassificationCohortLoss(gamma=0.0, teacher_link="features")
    file = tmp_path / "teacher.pt"
    torch.save(build_cohort(teacher=STAGED_PAIR, students=[STAGED]).networks["teacher"].state_dict(), file)
    checkpoint = str(file) if frozen else None
    network = build_cohort(teacher=STAGED_PAIR, students=[STAGED], features=True, teacher_checkpoint=checkpoint)
    predictions = network(images())
    found = loss(predictions, LABELS)["student_0_kd"]
    teacher = network.networks["teacher"]
    singles = []
    for member in teacher.members:
        alone = Cohort({"teacher": member, "student_0": network.networks["student_0"]}, features=True)
        singles.append(loss(alone(images()), LABELS)["student_0_kd"])
    assert torch.allclose(found, sum(singles) / 2)


@pytest.mark.parametrize("version", ["lite", "lite-twin"])
def test_lite_versions_link_by_features_of_both_bodies(version):
    network = build_cohort(version, features=True)
    assert network.feature_strides == (8, 16)
    terms = ClassificationCohortLoss(teacher_link="both", peer_link="both")(network(images(side=32)), LABELS)
    assert all(value.isfinite() for value in terms.values())


def test_members_that_do_not_know_their_stages_are_refused_for_links_by_features():
    with pytest.raises(InputError, match="PlainNet does not say where its feature maps are"):
        cohort({"name": "committee", "members": [STAGED, PLAIN]}, [STAGED], features=True)


def test_each_member_has_a_random_stream_of_its_own():
    first, other = cohort(seed=1), cohort({"name": "committee", "members": [WIDE, WIDE]}, [TINY], seed=1)
    members, others = first.networks["teacher"].members, other.networks["teacher"].members
    assert same(members[0], others[0])  # whatever stands beside it
    assert not same(others[0], others[1])
    alone = build_cohort(use_teacher=False, students=[PAIR | {"stream": "teacher"}], seed=1)
    assert same(alone.networks["student_0"], first.networks["teacher"])


def test_members_start_from_weights_by_architecture_or_by_name(tmp_path):
    files = {}
    for name, spec in (("wide", WIDE), ("plain", PLAIN)):
        files[name] = str(tmp_path / f"{name}.pt")
        torch.save(build_network(spec, num_classes=2).state_dict(), files[name])
    by_name = cohort(initial_weights={"teacher_0": files["wide"], PLAIN: files["plain"]})
    for member, name in zip(by_name.networks["teacher"].members, files, strict=True):
        assert same(member, _with(member, files[name]))
    with pytest.raises(InputError, match=r"names \['teacher'\].*'teacher_0', 'teacher_1'"):
        cohort(initial_weights={"teacher": files["wide"]})


def _with(network, file):
    copied = copy.deepcopy(network)
    load_trained(copied, file)
    return copied


def test_a_trained_committee_is_frozen_from_its_own_file_or_from_one_for_each_member(tmp_path):
    trained = cohort(seed=5).networks["teacher"]
    whole, parts = tmp_path / "teacher.pt", [str(tmp_path / f"{number}.pt") for number in range(2)]
    torch.save(trained.state_dict(), whole)
    for member, file in zip(trained.members, parts, strict=True):
        torch.save(member.state_dict(), file)
    for files in (str(whole), parts):
        network = cohort(teacher_checkpoint=files)
        assert same(network.networks["teacher"], trained)
        assert network.frozen_teacher
        assert not any(p.requires_grad for p in network.networks["teacher"].parameters())
        answer = network.train()(images())["teacher"]
        assert torch.equal(answer, trained.eval()(images()))


@pytest.mark.parametrize(
    ("teacher", "files", "words"),
    [(PAIR, ["a.pt"], "names 1 files.*a committee of 2"), (TINY, ["a.pt", "b.pt"], "names 2 files.*is one network")],
)
def test_as_many_files_as_members_are_needed(teacher, files, words):
    with pytest.raises(InputError, match=words):
        cohort(teacher, teacher_checkpoint=files)


@pytest.mark.parametrize(
    "spec",
    [
        "committee",
        {"name": "committee"},
        {"name": "committee", "members": [TINY]},
        {"name": "committee", "members": TINY},
        {"name": "committee", "members": [TINY, 3]},
        {"name": "committee", "members": [TINY, PAIR]},
        {"name": "committee", "members": [TINY, TINY], "width": 8},
    ],
    ids=str,
)
def test_what_is_no_committee_is_refused_in_one_line(spec):
    with pytest.raises(InputError, match="is no committee") as refused:
        cohort(spec)
    assert "\n" not in str(refused.value)


def test_an_unknown_member_is_named():
    with pytest.raises(InputError, match="unknown network 'resnet19'"):
        cohort({"name": "committee", "members": [TINY, "resnet19"]})


def test_a_committee_costs_what_its_members_cost():
    parts = [build_network(spec, num_classes=2) for spec in PAIR["members"]]
    network = build_network(PAIR, num_classes=2)
    assert multiply_accumulates(network, 16, 16) == sum(multiply_accumulates(part, 16, 16) for part in parts)
    counts = cohort().parameter_counts()
    assert counts["teacher"] == sum(p.numel() for part in parts for p in part.parameters())


def test_frozen_stages_are_those_of_every_member(tmp_path):
    file = tmp_path / "body.pt"
    torch.save(build_network(DETECTOR, num_classes=1).body.state_dict(), file)
    network = build_cohort(
        task="detection", teacher=DETECTORS, students=[DETECTOR], num_classes=1, initial_weights=str(file),
        frozen_stages=1,
    )  # fmt: skip
    for member in network.networks["teacher"].members:
        stem = next(member.body.parameters())
        assert not stem.requires_grad


def test_activations_are_computed_again_in_every_member():
    network, other = build_network(STAGED_PAIR, num_classes=2), build_network(STAGED_PAIR, num_classes=2)
    other.load_state_dict(network.state_dict())
    recompute_activations(other)
    for one in (network, other):
        sum(own.sum() for own in one(images()).members).backward()
    for mine, wanted in zip(gradients(other), gradients(network), strict=True):
        assert torch.equal(mine, wanted)


def test_precision_is_that_of_the_most_cautious_member():
    def committee(*specs):
        return Committee([build_network(spec, num_classes=2) for spec in specs])

    short = {"name": "mobilenet_v2", "last_block": 1}
    assert kind_of(committee(TINY, TINY)) == Kind.DENSE
    assert kind_of(committee(TINY, short)) == kind_of(committee(short, TINY)) == Kind.SEPARABLE


def test_answers_of_a_frozen_committee_are_remembered(tmp_path):
    files = {}
    for name, spec, task in (("classes", STAGED_PAIR, "classification"), ("boxes", DETECTORS, "detection")):
        files[name] = str(tmp_path / f"{name}.pt")
        torch.save(build_network(spec, num_classes=2 - (task == "detection")).state_dict(), files[name])
        students = [STAGED] if task == "classification" else [STEADY_DETECTOR]
        network = build_cohort(
            task=task, teacher=spec, students=students, num_classes=2 - (task == "detection"), features=True,
            teacher_checkpoint=files[name],
        )  # fmt: skip
        memory = RememberedTeacher(Kept().open, features=True)
        image = images(side=64)
        with torch.no_grad():
            wanted = network(image)["teacher"]
            memory.attach(network)
            first, again = network(image)["teacher"], network(image)["teacher"]
        assert (memory.asked, memory.known) == (4, 4)
        for found in (first, again):
            assert all(torch.equal(*pair) for pair in zip(_tensors(found), _tensors(wanted), strict=True))


def test_a_member_with_other_weights_is_asked_again(tmp_path):
    trained = build_network(PAIR, num_classes=2).eval()
    torch.save(trained.state_dict(), tmp_path / "teacher.pt")
    network = cohort(teacher_checkpoint=str(tmp_path / "teacher.pt"))
    RememberedTeacher(Kept().open).attach(network)
    before = network(images())["teacher"]
    other = build_network(WIDE, num_classes=2).eval()
    network.networks["teacher"].members[0].load_state_dict(other.state_dict())
    answer = network(images())["teacher"]
    assert torch.equal(answer, network.networks["teacher"](images()))
    assert not torch.equal(answer, before)


def _tensors(answer):
    return [answer[0], *answer[-1]] if len(answer) == 2 else [*answer[:2], *answer[-1]]


def test_grad_cam_is_the_mean_over_the_members():
    network = build_network({"name": "committee", "members": [STAGED, STAGED]}, num_classes=2).eval()
    maps = [grad_cam(member, images(side=32), 1) for member in network.members]
    assert (mean_grad_cam([network], images(side=32), 1) == (maps[0] + maps[1]) / 2).all()


def test_grad_cam_of_an_ensemble_counts_a_committee_once():
    network, other = (build_network(spec, num_classes=2).eval() for spec in (STAGED_PAIR, STAGED))
    maps = [mean_grad_cam([one], images(side=32), 1) for one in (network, other)]
    assert (mean_grad_cam([network, other], images(side=32), 1) == (maps[0] + maps[1]) / 2).all()


def test_an_exported_committee_gives_its_mean_probability():
    network = build_network(PAIR, num_classes=2)
    exported = ExportedClassifier({"teacher": network})
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        members = [ExportedClassifier({"teacher": member})(pixels) for member in network.members]
        assert torch.allclose(exported(pixels), (members[0] + members[1]) / 2, atol=1e-6)


def test_members_are_listed_with_their_teacher():
    ordered = [
        "teacher",
        "teacher_0",
        "teacher_1",
        "student_0",
        "student_1",
        "student_1_0",
        "student_1_1",
        "student_10",
    ]
    ordered += ["student_10_0", "ensemble"]
    names = ordered[1::2] + ordered[::2][::-1]
    assert sorted(names, key=network_order) == ordered


def test_words_for_people():
    assert architecture_words(DETECTORS) == (
        "committee of retinanet on mobilenet_v2 (width 16, head convs 1, last block 13) + "
        "retinanet on mobilenet_v2 (width 32, head convs 1, last block 13)"
    )
