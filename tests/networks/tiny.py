"""Networks small enough to train in a test, named in cohorts by their import path."""

from torch import Tensor, nn

from kdml_med.networks.retinanet import RetinaNet

TINY = "tests.networks.tiny.TinyNet"
PLAIN = "tests.networks.tiny.PlainNet"
STAGED = "tests.networks.tiny.StagedNet"
STEADY_DETECTOR = "tests.networks.tiny.steady_detector"
DROPPING = "tests.networks.tiny.DroppingNet"


class TinyNet(nn.Module):
    """A convolution with batch norm and a classifier."""

    def __init__(self, num_classes: int, *, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean(dim=(2, 3)))


class PlainNet(nn.Module):
    """The same without batch norm: samples of a batch do not see each other."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean(dim=(2, 3)))


class StagedNet(nn.Module):
    """Three strided convolutions that say where they end."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(channels, 5, 3, 2, 1) for channels in (3, 5, 5)))
        self.fc = nn.Linear(5, num_classes)

    def feature_stages(self) -> dict[int, nn.Module]:
        return {8: self.body[2], 4: self.body[1]}

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean(dim=(2, 3)))


class DroppingNet(TinyNet):
    """A TinyNet that forgets half of what it sees: another half each time, drawn by torch."""

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(nn.functional.dropout(self.body(image), 0.5, self.training).mean(dim=(2, 3)))


def steady_detector(num_classes: int, *, width: int = 16) -> nn.Module:
    """A small detector without batch norm: samples of a batch do not see each other."""
    network = RetinaNet(num_classes, width=width, head_convs=1, last_block=13)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, child.num_features))
    return network
