import copy
import importlib
import sys

import monai
import numpy as np
import pytest
import torch
from torch import nn

from kdml_med.losses import ClassificationCohortLoss, DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort, devices, remembered
from kdml_med.networks.answers import ClassifierAnswer
from kdml_med.networks.remembered import RememberedTeacher
from kdml_med.storage.records import RecordStore
from tests.networks.tiny import STAGED, TINY, TinyNet

DETECTOR = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}


class Kept:
    """Records in memory, by name."""

    def __init__(self):
        self.stores = {}
        self.name = None

    def open(self, name, size):
        return Shelf(self.stores.setdefault(name, {}), size)


class Shelf:
    def __init__(self, records, size):
        self.records, self.size = records, size

    def read(self, keys):
        empty = bytes(self.size)
        rows = [np.frombuffer(self.records.get(key, empty), np.uint8) for key in keys]
        return np.array([key in self.records for key in keys]), np.stack(rows)

    def write(self, keys, records):
        assert records.shape == (len(keys), self.size)
        self.records |= {key: bytes(record) for key, record in zip(keys, records, strict=True)}


def freeze(cohort):
    return Cohort(dict(cohort.networks.items()), frozen_teacher=True, features=bool(cohort.feature_strides))


def classifiers(**settings):
    return freeze(build_cohort(**({"teacher": TINY, "students": [TINY, TINY]} | settings)))


def detectors():
    return freeze(build_cohort(task="detection", num_classes=1, teacher=DETECTOR, students=[DETECTOR]))


def images(*seeds, side=64):
    return torch.stack([torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def remembering(cohort, kept=None, **settings):
    memory = RememberedTeacher((kept or Kept()).open, **settings)
    memory.attach(cohort)
    return memory


class Spy(nn.Module):
    """Counts what a teacher is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, image):
        self.calls.append(len(image))
        return self.network(image)


def test_images_that_come_again_are_not_shown_to_the_teacher():
    cohort = Cohort({"teacher": Spy(TinyNet(2)), "student_0": TinyNet(2)}, frozen_teacher=True)
    memory, asked = remembering(cohort), cohort.networks["teacher"].calls
    teacher = cohort.networks["teacher"].network
    assert torch.equal(cohort(images(1, 2, 3))["teacher"], teacher(images(1, 2, 3)))
    assert asked == [1, 3]  # one to see what its answers look like
    assert torch.equal(cohort(images(3, 1, 2))["teacher"], teacher(images(3, 1, 2)))
    assert torch.equal(cohort(images(1, 3, 3))["teacher"], teacher(images(1, 3, 3)))
    assert asked == [1, 3]
    # One that is new, and the whole batch is asked about: alone it would be rounded in another way.
    assert torch.equal(cohort(images(2, 4, 1))["teacher"], teacher(images(2, 4, 1)))
    assert asked == [1, 3, 3]
    assert torch.equal(cohort(images(4, 4, 2))["teacher"], teacher(images(4, 4, 2)))
    assert asked == [1, 3, 3]
    assert (memory.known, memory.asked) == (9, 6)
    # The students answer every time.
    assert torch.equal(cohort(images(2, 4))["student_0"], cohort.networks["student_0"](images(2, 4)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["plain", "staged", "detectors"])
def test_remembered_answers_are_to_the_bit_what_the_teacher_says(kind, layout, autocast):
    if kind == "detectors":
        cohort = detectors()
    else:
        network = {"plain": TINY, "staged": STAGED}[kind]
        cohort = classifiers(teacher=network, students=[network], features=kind == "staged")
    cohort = cohort.to(memory_format=layout).train()
    plain, image = copy.deepcopy(cohort), images(1, 2, 3, 4).contiguous(memory_format=layout)
    memory = remembering(cohort, features=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = plain(image)["teacher"]
        answers = [cohort(image)["teacher"] for _ in range(2)]
    assert (memory.asked, memory.known) == (4, 4)
    for answer in answers:
        assert type(answer) is type(expected)
        for one, other in zip(flat(answer), flat(expected), strict=True):
            assert one.dtype == other.dtype
            assert one.stride() == other.stride() or other.shape[2:] in ((), (1, 1))
            assert torch.equal(one, other)
            assert not one.requires_grad


def flat(answer):
    return [answer] if isinstance(answer, torch.Tensor) else [*answer[:-1], *answer[-1]]


def test_what_makes_the_answer_another_one_is_another_question():
    kept, image = Kept(), images(1, 2)
    remembered_before(kept, classifiers(), image)

    def known(cohort, image):
        memory = remembered_before(kept, cohort, image)
        return memory.known

    assert known(classifiers(), image) == 2
    assert known(classifiers(seed=1), image) == 0
    assert known(classifiers(teacher={"name": TINY, "width": 5}), image) == 0
    assert known(classifiers(), image + 1e-6) == 0
    assert known(classifiers(), images(1, 2, side=32)) == 0
    assert known(classifiers(), image.contiguous(memory_format=torch.channels_last)) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert known(classifiers(), image) == 0
    assert known(classifiers(), image[1:]) == 0
    assert known(classifiers(), image.flip(0)) == 2


def of_teacher(network):
    return Cohort({"teacher": network, "student_0": TinyNet(2)}, frozen_teacher=True)


@pytest.mark.parametrize("name", ["no_max_pool", "slope", "options", "buffer", "tensor"])
def test_what_a_network_was_told_is_part_of_it_though_no_weight_and_no_line_of_it_shows(name):
    def made(*, other):
        torch.manual_seed(0)
        if name == "no_max_pool":
            return monai.networks.nets.resnet10(n_input_channels=3, spatial_dims=2, num_classes=2, no_max_pool=other)
        network, value = TinyNet(2), 0.5 if other else 0.25
        if name == "buffer":
            network.register_buffer("scale", torch.tensor(value), persistent=False)
        else:
            told = {"slope": value, "options": Options(value), "tensor": torch.tensor(value)}
            setattr(network, name, told[name])
        return network

    one, other = made(other=False), made(other=True)
    assert str(one) == str(other)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    kept, image = Kept(), images(1, 2)
    remembered_before(kept, of_teacher(one), image)
    assert remembered_before(kept, of_teacher(made(other=False)), image).known == 2
    assert remembered_before(kept, of_teacher(other), image).known == 0


class Options:
    """Like a dataclass, and with a place in memory."""

    def __init__(self, slope):
        self.slope = slope

    def __repr__(self):
        return f"<Options {self.slope} at {hex(id(self))}>"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A network of a person's own, from files with the code of its answers and of a helper beside it."""
    folder = tmp_path / "own_nets"
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(factor=1, helped=0):
        for loaded in [loaded for loaded in sys.modules if loaded.startswith("own_nets")]:
            del sys.modules[loaded]
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "helper.py").write_text(f"def more():\n    return {helped}\n")
        (folder / "net.py").write_text(
            "from tests.networks.tiny import TinyNet\nfrom own_nets.helper import more\n"
            f"class Own(TinyNet):\n    def forward(self, x):\n        return {factor} * super().forward(x) + more()\n"
        )
        importlib.invalidate_caches()
        torch.manual_seed(0)
        return of_teacher(importlib.import_module("own_nets.net").Own(2))

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield load
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("own_nets")]:
        del sys.modules[loaded]


def test_a_network_of_ones_own_that_was_edited_is_another_one(own):
    kept, image = Kept(), images(1, 2)
    remembered_before(kept, own(), image)
    assert remembered_before(kept, own(), image).known == 2
    assert remembered_before(kept, own(factor=2), image).known == 0
    assert remembered_before(kept, own(helped=1), image).known == 0
    assert remembered_before(kept, own(), image).known == 2


@pytest.mark.parametrize("package", ["monai", "kdml_med"])
def test_answers_of_other_versions_are_not_taken(package, monkeypatch):
    kept, image = Kept(), images(1, 2)
    remembered_before(kept, detectors(), image)
    assert remembered_before(kept, detectors(), image).known == 2
    monkeypatch.setattr(sys.modules[package], "__version__", "99.0")
    assert remembered_before(kept, detectors(), image).known == 0


def test_answers_of_another_processor_are_not_taken(tmp_path, monkeypatch):
    kept, image = Kept(), images(1, 2)

    def known(*lines, native=(), other="x86_64"):
        (tmp_path / "cpuinfo").write_text("\n".join(lines))
        monkeypatch.setattr(devices, "_PROCESSORS", tmp_path / ("cpuinfo" if lines else "absent"))
        monkeypatch.setattr(devices.platform, "processor", lambda: other)
        monkeypatch.setattr(remembered, "native_types", lambda _: frozenset(native))
        devices.processor.cache_clear()
        return remembered_before(kept, classifiers(), image).known

    one = "processor: 0", "model name: one", "cpu MHz: 2000"
    arm = "CPU implementer: 0x41", "CPU part: 0xd40"
    try:
        for others in ((*one,), ("model name: other",), (*one, "model: 17"), arm, (arm[0], "CPU part: 0xd4f"), ()):
            assert known(*others) == 0
        assert known(*one, native=["bf16"]) == 0
        assert known(other="arm") == 0
        assert known(*one) == known(*arm) == known() == 2
        assert known("processor: 5", "model name: one", "cpu MHz: 2100", "model name: one") == 2
    finally:
        devices.processor.cache_clear()


def remembered_before(kept, cohort, image):
    """The memory of a cohort, after it has answered as its teacher does."""
    memory = remembering(cohort, kept)
    answers = flat(cohort(image)["teacher"]), flat(cohort.networks["teacher"](image))
    assert all(map(torch.equal, *answers))  # of detectors without feature maps
    return memory


def test_weights_that_are_loaded_later_are_asked_anew():
    cohort, other = classifiers(), classifiers(seed=1)
    remembering(cohort)
    image = images(1, 2)
    first = cohort(image)["teacher"]
    cohort.load_state_dict(other.state_dict())
    assert torch.equal(cohort(image)["teacher"], other.networks["teacher"](image))
    assert not torch.equal(cohort(image)["teacher"], first)


def test_what_is_called_in_place_of_the_teacher_answers_for_itself():
    cohort = classifiers().train()
    memory = remembering(cohort)
    image = images(1, 2)
    first = cohort(image)["teacher"]
    spy = Spy(cohort.networks["teacher"])
    cohort.compiled = {"teacher": spy}
    for _ in range(2):
        assert torch.equal(cohort(image)["teacher"], first)
    assert spy.calls == [2]
    assert (memory.asked, memory.known) == (4, 2)


def test_a_copy_of_a_cohort_has_the_same_memory_and_its_own_teacher():
    cohort = classifiers()
    memory = remembering(cohort)
    image = images(1, 2)
    first = cohort(image)["teacher"]
    other = copy.deepcopy(cohort)
    assert torch.equal(other(image)["teacher"], first)
    assert (memory.asked, memory.known) == (2, 2)
    other.load_state_dict(classifiers(seed=1).state_dict())
    assert torch.equal(other(image)["teacher"], other.networks["teacher"](image))
    assert torch.equal(cohort(image)["teacher"], first)
    assert (memory.asked, memory.known) == (4, 4)


def test_feature_maps_are_kept_where_they_are_learned_from_and_only_there():
    cohort, staged = detectors(), classifiers(teacher=STAGED, students=[STAGED], features=True).train()
    remembering(cohort)
    remembering(staged, features=True)
    for _ in range(2):
        assert cohort(images(1))["teacher"].features == ()
        assert len(cohort(images(1))["student_0"].features) == 4
        answer = staged(images(1))["teacher"]
        assert isinstance(answer, ClassifierAnswer)
        assert [tuple(part.shape) for part in answer.features] == [(1, 5, 8, 8)]
    # Nobody asks for feature maps in evaluation.
    assert isinstance(staged.eval()(images(1))["teacher"], torch.Tensor)


def test_students_get_the_same_gradients():
    target = [torch.tensor([[4.0, 6, 36, 40]]), torch.zeros(0, 4)], (64, 64)
    label = torch.tensor([0, 1])
    for make, loss, truth in (
        (detectors, DetectionCohortLoss(gamma=0, train_teacher=False), target),
        (classifiers, ClassificationCohortLoss(train_teacher=False), label),
    ):
        plain = make().train()
        cohort = copy.deepcopy(plain)
        remembering(cohort)
        with torch.no_grad():
            copy.deepcopy(plain)(images(1, 2))
            cohort.eval()(images(1, 2))  # so that what follows is known
        cohort.load_state_dict(plain.state_dict())
        cohort.train()
        for one in (plain, cohort):
            loss(one(images(1, 2)), truth)["loss"].backward()
        for (name, one), other in zip(plain.named_parameters(), cohort.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_only_a_frozen_teacher_is_remembered():
    with pytest.raises(ValueError, match="only the answers of a frozen teacher stay the same"):
        remembering(build_cohort(teacher=TINY, students=[TINY]))


def test_runs_that_share_a_folder_find_each_others_answers(tmp_path):
    def opened(name, size):
        return RecordStore(tmp_path / name, size)

    image = images(1, 2, 3)
    for number, make in enumerate((classifiers, detectors, lambda: classifiers(students=[STAGED] * 3), detectors)):
        cohort = make()
        memory = RememberedTeacher(opened)
        memory.attach(cohort)
        for one, other in zip(flat(cohort(image)["teacher"]), flat(cohort.networks["teacher"](image)), strict=False):
            assert torch.equal(one, other)
        assert (memory.asked, memory.known) == ((3, 0) if number < 2 else (0, 3))
