"""Networks: the cohort, its named versions, and starting from weights in a file."""

from kdml_med.networks.cohort import Cohort, build_cohort
from kdml_med.networks.efficientnet_lite import EfficientNetLite
from kdml_med.networks.mobilenet import MobileNetV2
from kdml_med.networks.registry import VERSIONS, build_network
from kdml_med.networks.weights import load_initial_weights

__all__ = [
    "VERSIONS",
    "Cohort",
    "EfficientNetLite",
    "MobileNetV2",
    "build_cohort",
    "build_network",
    "load_initial_weights",
]
