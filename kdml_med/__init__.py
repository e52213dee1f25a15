"""Online knowledge distillation with peer-to-peer mutual learning for small medical image models, on MONAI."""

__version__ = "0.1.0"
