"""The import directions of the design, read from the source without running it."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch", "monai", "ignite", "safetensors", "tensorboard"}

BASE = {"errors", "keys", "storage", "words"}
PREPARATION = BASE | {"program", "splits", "tables", "workers"}
# What each room may import of the others; the rooms above these in the design may import them all.
ALLOWED: dict[str, set[str]] = {
    "keys": set(),
    "errors": set(),
    "words": set(),
    "pixels": set(),
    "program": {"errors", "words"},
    "workers": {"errors", "program"},
    "storage": {"errors", "keys", "words"},
    "tables": BASE,
    "splits": BASE | {"tables"},
    "wsi": PREPARATION | {"pixels"},
    "colonoscopy": PREPARATION,
    "demo": PREPARATION | {"colonoscopy", "wsi"},  # each cohort is prepared by the room that is to be tried
    "data": BASE | {"pixels", "program", "splits", "wsi"},  # stain normalisation as a training transform
    "metrics": {"errors", "keys"},
    "networks": {"errors", "keys", "pixels", "storage"},  # files of weights, and how they want their images
    "losses": {"errors", "keys", "networks"},
    "engines": {"errors", "keys", "losses", "networks", "words"},
    "runs": BASE | {"metrics", "networks"},
    "handlers": BASE | {"program", "data", "engines", "losses", "metrics", "networks", "report", "runs"},
    "deploy": PREPARATION
    | {"colonoscopy", "data", "engines", "handlers", "metrics", "networks", "pixels", "report", "runs", "wsi"},
    "report": BASE | {"metrics", "program"},
}
READS_RUNS = "kdml_med.programs.like"  # for who names a trained run, and not before
WITHOUT_FRAMEWORKS = [
    "errors",
    "keys",
    "words",
    "pixels",
    "program",
    "storage",
    "tables",
    "splits",
    "metrics",
    "report",
    "wsi",
    "colonoscopy",
    "demo",
    "workers",
]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Names that a module imports anywhere, inside functions too; ``from a import b`` gives a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def read_modules(top: str) -> dict[str, set[str]]:
    """Everything that is imported, by module of a top-level package."""
    modules = {}
    for path in sorted((ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        modules[name] = set(imported_modules(path.read_text(), package))
    return modules


LIBRARY = read_modules("kdml_med")
PREPROCESSING = read_modules("preprocessing")


def room_of(module: str) -> str | None:
    """First part below kdml_med; None for other packages and for kdml_med itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "kdml_med" and len(parts) > 1 and parts[1] in ROOMS else None


ROOMS = {module.split(".")[1] for module in LIBRARY if "." in module}


def room_imports() -> dict[str, set[str]]:
    """Other rooms that each room imports."""
    rooms: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, imports in LIBRARY.items():
        room = room_of(module)
        if room is not None:
            rooms[room] |= {other for name in imports if (other := room_of(name)) not in (None, room)}
    return rooms


def reached(module: str) -> set[str]:
    """Everything that importing a module imports, the packages around each module included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            parts = name.split(".")
            waiting += [".".join(parts[:count]) for count in range(1, len(parts))]
            if name != READS_RUNS:
                waiting += (LIBRARY | PREPROCESSING).get(name, ())
    return seen


def test_imports_are_found_wherever_and_however_they_are_written():
    source = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g.h import i\n"
    found = set(imported_modules(source, "top.room"))
    assert found == {"a.b", "c", "c.d", "top.room", "top.room.e", "top.g.h", "top.g.h.i"}


@pytest.mark.parametrize("room", sorted(ROOMS - {"bundle", "clinical", "experiments", "api", "programs", "cli"}))
def test_a_room_imports_only_what_stands_below_it(room):
    assert room_imports()[room] <= ALLOWED[room]


def test_rooms_do_not_import_each_other_in_circles():
    # static_order raises CycleError, which names the rooms.
    order = list(TopologicalSorter(room_imports()).static_order())
    known = ["errors", "networks", "handlers", "bundle", "experiments"]
    assert sorted(known, key=order.index) == known


def test_modules_do_not_import_each_other_in_circles():
    # Inside functions, too: such an import hides a circle, it does not undo it. A package imports its own modules.
    modules = {
        name: {other for other in imports if other in LIBRARY and other != name and not name.startswith(f"{other}.")}
        for name, imports in LIBRARY.items()
    }
    list(TopologicalSorter(modules).static_order())


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("bundle", {"clinical", "experiments", "api", "programs"}),
        ("experiments", {"programs"}),
        ("clinical", {"api", "programs"}),
        ("api", {"programs"}),
        ("programs", {"cli"}),
        ("cli", {"programs"}),  # the demo, see below
    ],
)
def test_nothing_imports_the_rooms_on_top(room, above):
    assert {other for other, imports in room_imports().items() if room in imports} <= above


def test_only_the_demo_runs_commands_as_they_are_typed():
    assert {module for module, imports in LIBRARY.items() if "kdml_med.cli" in imports} == {"kdml_med.programs.demo"}


def test_only_workers_start_processes():
    modules = [module for module, imports in LIBRARY.items() if "multiprocessing" in imports]
    assert {room_of(module) for module in modules} == {"workers"}


@pytest.mark.parametrize("room", WITHOUT_FRAMEWORKS)
def test_preparation_and_metrics_need_no_learning_framework(room):
    modules = [module for module in LIBRARY if room_of(module) == room]
    assert modules
    for module in modules:
        assert not {name.split(".")[0] for name in reached(module)} & FRAMEWORKS, module


def test_the_library_imports_neither_programs_nor_bundles_nor_tests():
    for module, imports in LIBRARY.items():
        assert not {name.split(".")[0] for name in imports} & {"preprocessing", "bundles", "tests"}, module


def test_programs_prepare_data_without_a_learning_framework():
    assert PREPROCESSING
    for module in PREPROCESSING:
        names = reached(module)
        assert not {name.split(".")[0] for name in names} & (FRAMEWORKS | {"bundles", "tests"}), module
        assert not {room_of(name) for name in names} & {"networks", "losses", "engines", "handlers", "runs"}, module
