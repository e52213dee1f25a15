import copy
import json
from pathlib import Path

import jsonschema
import pytest

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = ["msi_kdml", "polyp_kdml"]
METADATA = json.loads((BUNDLES / "msi_kdml" / "configs" / "metadata.json").read_text())
SCHEMA = json.loads((BUNDLES / "metadata_schema.json").read_text())

REQUIRED = [
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
]
OF_A_TENSOR = [
    "type",
    "format",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
]


@pytest.fixture
def metadata():
    return copy.deepcopy(METADATA)


def is_valid(content):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(content)


def test_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_of_the_bundles_fits_the_schema(name):
    jsonschema.validate(json.loads((BUNDLES / name / "configs" / "metadata.json").read_text()), SCHEMA)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_refused(metadata, key):
    del metadata[key]
    assert not is_valid(metadata)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_number_instead_of_text_or_object_is_refused(metadata, key):
    metadata[key] = 1
    assert not is_valid(metadata)


def test_some_list_of_packages_is_needed_and_either_name_will_do(metadata):
    packages = metadata.pop("required_packages_version")
    assert not is_valid(metadata)
    assert is_valid(metadata | {"optional_packages_version": packages})


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_inputs_and_outputs_are_needed_and_not_empty(metadata, side):
    metadata["network_data_format"][side] = {}
    assert not is_valid(metadata)
    del metadata["network_data_format"][side]
    assert not is_valid(metadata)


@pytest.mark.parametrize("key", OF_A_TENSOR)
@pytest.mark.parametrize(("side", "name"), [("inputs", "image"), ("outputs", "pred")])
def test_a_tensor_needs_each_of_its_keys(metadata, side, name, key):
    del metadata["network_data_format"][side][name][key]
    assert not is_valid(metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_channels", "3"),
        ("num_channels", 0),
        ("spatial_shape", 224),
        ("spatial_shape", [0, 224]),
        ("dtype", "real"),
        ("value_range", [0]),
        ("value_range", ["0", "1"]),
        ("is_patch_data", "false"),
        ("channel_def", ["red"]),
        ("channel_def", {"red": "0"}),
    ],
)
def test_a_wrong_value_of_a_tensor_is_refused(metadata, key, value):
    metadata["network_data_format"]["inputs"]["image"][key] = value
    assert not is_valid(metadata)


def test_shapes_may_be_expressions(metadata):
    metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = ["32 * n", "*"]
    assert is_valid(metadata)
