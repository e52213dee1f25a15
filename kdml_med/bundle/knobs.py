"""The one list of settings: name, values, default and meaning of everything that a bundle's command line takes.

A config names each setting once, with its default, so that the config can be read by itself; a test compares it with
this list. Checks, ``--help``, the page of settings in the documentation, what is recorded and compared when a run is
continued, and what the builders of networks and losses are given come from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from kdml_med.bundle.kinds import (
    DEVICE,
    FLAG,
    INPUT_SIZE,
    LARGEST,
    PATH,
    RANGE,
    SPEC,
    SPECS,
    TEXT,
    WEIGHTS,
    Kind,
    is_flag_text,
    is_whole,
    number,
    one_or_each,
    optional,
    some_of,
    whole,
    word,
)
from kdml_med.deploy.polyps.correction_files import CORRECTION_FORMATS
from kdml_med.deploy.slides.classifier import Runtime
from kdml_med.engines.acceleration import MemoryFormat, Precision, Recomputing
from kdml_med.engines.detection import FUSIONS
from kdml_med.engines.evaluator import AVERAGES
from kdml_med.errors import InputError
from kdml_med.keys import Split, Task
from kdml_med.losses.cohort import LINKS
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.networks.starts import OWN_STARTS
from kdml_med.wsi.options import StainMode

Stage = Literal["train", "evaluate", "inference"]
"""Kind of a config: train.json, evaluate.json (together with train.json), inference.json."""


BOTH = tuple(Task)
CLASSIFICATION, DETECTION = (Task.CLASSIFICATION,), (Task.DETECTION,)
ALL_STAGES: tuple[Stage, ...] = get_args(Stage)
TRAIN: tuple[Stage, ...] = ("train", "evaluate")
"""evaluate.json is named together with train.json, and so takes its settings, too."""


@dataclass(frozen=True)
class Knob:
    """One setting.

    Attributes:
        name: on the command line and in configs.
        kind: what it can be.
        help: what it means, one line of Markdown.
        default: value where a config does not name it; by task where they differ; a ``Shown`` where it is worked out.
        group: heading under which it is listed.
        tasks: that have it.
        stages: configs that have it.
        part: "networks" or "loss": whose builder it is handed to, under its name.
        recorded: whether it belongs to what a run is: it stands in settings.json, and a run is only continued with the
            same value.
        free: recorded, and a continued run may change it.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    group: str
    tasks: tuple[Task, ...] = BOTH
    stages: tuple[Stage, ...] = TRAIN
    part: Literal["networks", "loss"] | None = None
    recorded: bool = True
    free: bool = False

    def default_of(self, task: Task) -> Any:
        """The default for a task."""
        return self.default[task] if isinstance(self.default, ByTask) else self.default

    def check(self, value: Any) -> Any:
        """The value as it is used.

        Raises:
            InputError: it is none of the kind.
        """
        if self.kind.accepts(value):
            return self.kind.convert(value)
        refuse_flag_text(self.name, value)
        endless = self.kind.words.startswith("a whole number") and " to " not in self.kind.words
        limit = f", at most {LARGEST}" if endless and is_whole(value) and value > LARGEST else ""
        raise InputError(f"--{self.name} is {value!r}, expected {self.kind.words}{limit}.")


def refuse_flag_text(name: str, value: Any) -> None:
    """Refuse the texts true and false, as which MONAI's command line hands on what has no capital letter."""
    if is_flag_text(value):
        raise InputError(f"--{name.replace('::', '#')} {value}: write {value.capitalize()}, with a capital letter.")


class ByTask(dict[Task, Any]):
    """Defaults that differ between the tasks."""


@dataclass(frozen=True)
class Shown:
    """A default that a config works out; ``words`` say what it is."""

    words: str


def _by_task(classification: Any, detection: Any) -> ByTask:
    return ByTask({Task.CLASSIFICATION: classification, Task.DETECTION: detection})


PLACE, NETWORKS, LOSSES, LEARNING, RECORD = (
    "Where and how",
    "Networks",
    "Losses",
    "Optimisation and augmentation",
    "Validation and record",
)
USE = "Evaluation and inference"
_LOSS: dict[str, Any] = {"group": LOSSES, "part": "loss"}
_BUILD: dict[str, Any] = {"group": NETWORKS, "part": "networks"}
_PLACE: dict[str, Any] = {"group": PLACE, "stages": ALL_STAGES, "recorded": False}
_USE: dict[str, Any] = {"group": USE, "stages": ("inference",), "recorded": False}

# fmt: off
KNOBS: list[Knob] = [
    # In this order they are checked: what others are derived from comes first.
    Knob("dataset_dir", PATH, default=Shown("`<bundle_root>/data/demo`"), **_PLACE,
         help="dataset folder; the default one is generated on first use"),
    Knob("run_dir", PATH, default=Shown("`<bundle_root>/runs/train`"), **_PLACE,
         help="folder of the run"),
    Knob("resume", FLAG, default=True, group=PLACE, recorded=False,
         help="continue the run in `run_dir` if there is one, with [the same "
              "settings](../how_to/resume_and_reproduce.md); without it such a folder is refused"),
    Knob("seed", whole(0), default=0, group=PLACE, part="networks",
         help="of initial weights, order of samples and augmentation; not of the splits"),
    Knob("device", DEVICE, default=Shown("`cuda`, or `cpu` without a GPU"), group=PLACE, stages=ALL_STAGES, free=True,
         help="where the networks run"),
    Knob("precision", word("auto", *get_args(Precision), "measure"), default="auto", group=PLACE,
         help="of the arithmetic in training; weights, losses and all evaluation are float32. `auto` is [a rule]("
              "../how_to/precision.md) by device, network and size of the images; `measure` prints what this machine "
              "gains, and ends"),
    Knob("memory_format", word("auto", *get_args(MemoryFormat)), default="auto", group=PLACE,
         help="order of images and weights in memory while training"),
    Knob("compile", FLAG, default=False, group=PLACE,
         help="let torch.compile [fuse operations](../how_to/precision.md#compilation); needs a C++ compiler, and "
              "minutes at the start"),
    Knob("checkpoint_activations", word(*get_args(Recomputing)), default="none", group=PLACE, free=True,
         help="networks that compute activations again in the backward pass instead of [keeping them]("
              "../how_to/precision.md#memory). Does not change results"),
    Knob("num_workers", whole(0), default=0, group=PLACE, stages=ALL_STAGES, free=True,
         help="processes that read samples; 0 reads in the main process. Does not change results"),
    Knob("cache", PATH, default="none", group=PLACE, recorded=False,
         help="`disk` keeps decoded pixels in `cache/` below the dataset, a path in that folder, for [small sets "
              "that are read many times](dataset_folder.md#decoded-pixels). Does not change results"),
    Knob("version", TEXT, default=_by_task("v1", "tiny"), **_BUILD,
         help="[named cohort](losses_and_networks.md#versions)"),
    Knob("teacher", optional(SPEC, "that of the version"), default=None, **_BUILD,
         help="replaces the version's teacher, also by [several networks](../how_to/own_networks.md#a-committee-as-the"
              "-teacher); `stream` in a mapping names the [random "
              "stream](../how_to/own_networks.md#the-teacher-alone) of the initial weights"),
    Knob("students", optional(SPECS, "those of the version"), default=None, **_BUILD,
         help="replaces the version's students, any number from one"),
    Knob("initial_weights", optional(WEIGHTS, "random weights"), default=None, **_BUILD,
         help="files of [weights to start from](../how_to/own_networks.md#start-from-weights), for detectors of their "
              "bodies (`resnet50`); `imagenet` takes those of installed packages"),
    Knob("own_start", one_or_each(word(*OWN_STARTS), "student"), default="none", **_BUILD,
         help="what students do not take from `initial_weights`, so that they [start apart]("
              "../how_to/own_networks.md#students-that-start-apart)"),
    Knob("frozen_stages", whole(0, 5), default=0, tasks=DETECTION, **_BUILD,
         help="first stages of every body that stay as in `initial_weights`, which then is needed for all networks"),
    Knob("teacher_checkpoint", optional(one_or_each(PATH, "member of a committee")), default=None, **_BUILD,
         help="state dict of a trained teacher, which is then frozen"),
    Knob("cache_teacher", PATH, default="none", group=NETWORKS, recorded=False,
         help="`disk` keeps the answers of a frozen teacher in `cache/teachers/` below the dataset, a path in that "
              "folder, for [views that repeat and other "
              "runs](../how_to/own_networks.md#a-teacher-that-was-trained-before). Does not change results"),
    Knob("use_teacher", FLAG, default=Shown("`beta > 0`"), **_BUILD,
         help="whether a teacher is built; `beta` above 0 and `teacher_checkpoint` need one"),
    Knob("alpha", number(0), default=1.0, **_LOSS,
         help="weight of the labels in each student's loss"),
    Knob("beta", number(0), default=1.0, **_LOSS,
         help="weight of the teacher"),
    Knob("gamma", number(0), default=1.0, **_LOSS,
         help="weight of the peers"),
    Knob("temperature", number(0, above=True, high=1000), default=4.0, **_LOSS,
         help="T towards the teacher"),
    Knob("peer_temperature", number(0, above=True, high=1000), default=1.0, **_LOSS,
         help="T_p between peers"),
    Knob("ramp_up_epochs", whole(0), default=_by_task(1, 3), **_LOSS,
         help="R: `beta` and `gamma` are multiplied by min(1, e / (R + 1)) in epoch e = 1, 2, …; 0 for full weight "
              "at once"),
    Knob("teacher_warmup_epochs", whole(0), default=0, **_LOSS,
         help="[head start](../how_to/own_networks.md#a-head-start-for-the-teacher) of the teacher: for so many epochs "
              "students do not learn from it yet; the ramp of `beta` begins behind them"),
    Knob("teacher_link", one_or_each(word(*LINKS), "student"), default="predictions", **_LOSS,
         help="what students learn from the teacher"),
    Knob("peer_link", one_or_each(word(*LINKS), "student"), default="predictions", **_LOSS,
         help="likewise from their peers"),
    Knob("feature_weight", number(0), default=1.0, **_LOSS,
         help="weight of feature maps where a link has them"),
    Knob("box_weight", number(0), default=2.0, tasks=DETECTION, **_LOSS,
         help="weight of the box terms beside those of scores"),
    Knob("max_epochs", whole(1), default=_by_task(5, 11), group=LEARNING, free=True,
         help="epochs of training"),
    Knob("batch_size", whole(1), default=_by_task(16, 8), group=LEARNING,
         help="samples of a batch, also of the validation; of all [processes](../how_to/several_processes.md) "
              "together. An incomplete last batch is used unless it would hold one sample"),
    Knob("accumulate", whole(1), default=1, group=LEARNING,
         help="batches whose mean gradient makes one update of the weights: the gradient of a batch of `batch_size` × "
              "this in the memory of one. Batch norm sees single batches"),
    Knob("learning_rate", number(0, above=True), default=0.001, group=LEARNING,
         help="highest, for every network; AdamW"),
    Knob("weight_decay", number(0), default=0.01, group=LEARNING,
         help="of AdamW"),
    Knob("warmup_epochs", number(0), default=1, group=LEARNING,
         help="epochs of linear rise from a tenth of `learning_rate`; then a cosine to 0 at `max_epochs`"),
    Knob("average", word("none", "ema", "swa"), default="none", group=LEARNING,
         help="[mean of the weights](../how_to/stop_average_track.md#average-the-weights) that networks pass through, "
              "judged and kept in place of the last ones: `ema`, exponential, after every step, or `swa`, plain, after "
              "every epoch"),
    Knob("ema_decay", number(0, high=1), default=0.999, group=LEARNING,
         help="share of the mean that a step of `ema` keeps; less in the first steps"),
    Knob("swa_start", number(0, high=1), default=0.75, group=LEARNING,
         help="share of the epochs after which the mean of `swa` begins"),
    Knob("average_teaches", FLAG, default=False, group=LEARNING,
         help="students learn from what the `ema` of the [teacher]("
              "../how_to/own_networks.md#the-average-as-the-teacher) says, and not from the weights that it has just "
              "now"),
    Knob("balance", FLAG, default=False, group=LEARNING,
         help="draw both classes (frames with and without polyps) equally often, with replacement"),
    Knob("repeat_views", optional(whole(1), "new ones in every epoch"), default=None, group=LEARNING,
         help="epochs after which the batches of the first one come again, augmented as they were, so that "
              "`cache_teacher` knows the answers"),
    Knob("student_views", FLAG, default=False, group=LEARNING, tasks=CLASSIFICATION,
         help="augment each tile once [for each student](../how_to/own_networks.md#a-view-for-each-student), which "
              "learns from the teacher's answer to its own view; the teacher learns from all of them"),
    Knob("own_labels", FLAG, default=False, group=LEARNING, tasks=CLASSIFICATION,
         help="each student reads the labels [of its own share of the patients](../how_to/own_networks.md#"
              "labels-of-its-own-for-each-student) alone, and learns of the others from teacher and peers"),
    Knob("tiles_per_epoch", optional(whole(1), "each training tile once"), default=None, group=LEARNING,
         tasks=CLASSIFICATION,
         help="length of an epoch, tiles"),
    Knob("frames_per_epoch", optional(whole(1), "each training frame once"), default=None, group=LEARNING,
         tasks=DETECTION,
         help="length of an epoch, frames"),
    Knob("image_size", optional(whole(1), "the stored size"), default=None, group=LEARNING, tasks=CLASSIFICATION,
         stages=ALL_STAGES,
         help="side that tiles are resized to, pixels. Needed where images differ in size"),
    Knob("image_size", INPUT_SIZE, default=[128, 128], group=LEARNING, tasks=DETECTION, stages=ALL_STAGES,
         help="input of the networks; frames are scaled to fit"),
    Knob("zoom", RANGE, default=[0.8, 1.3], group=LEARNING, tasks=DETECTION,
         help="range of the random factor to the scale that would just fit the frame"),
    Knob("colour_jitter", number(0, high=1), default=0.25, group=LEARNING, tasks=DETECTION,
         help="brightness, contrast and saturation are multiplied by factors in 1 ± this"),
    Knob("stain", word(*get_args(StainMode)), default="none", group=LEARNING, tasks=CLASSIFICATION, stages=ALL_STAGES,
         help="`macenko` normalises every tile with its slide's own stain matrix from `slides.csv`, before "
              "augmentation and in validation too. Tiles that are stored normalised are not normalised again. Every"
              " slide in use needs a matrix"),
    Knob("stain_jitter", number(0), default=0.25, group=LEARNING, tasks=CLASSIFICATION,
         help="optical density of each colour channel is multiplied by a factor in 1 ± this, and shifted by up to ±"
              " 0.05"),
    Knob("val_interval", whole(1), default=1, group=RECORD,
         help="epochs between validations"),
    Knob("early_stopping", optional(whole(1), "all epochs"), default=None, group=RECORD, free=True,
         help="[validations in a row](../how_to/stop_average_track.md#stop-early) without a higher key metric that end "
              "the training"),
    Knob("fold", optional(whole(0)), default=None, group=RECORD,
         help="fold that tests, where `splits.csv` has folds; the next one validates. In evaluation that of the run"),
    Knob("level", optional(word(*get_args(Level)), "what carries the labels in the dataset"), default=None,
         group=RECORD, tasks=CLASSIFICATION, stages=ALL_STAGES,
         help="what tiles are aggregated to. `patient` is refused where slides carry the labels"),
    Knob("aggregation", word(*get_args(AggregationMethod)), default="mean", group=RECORD, tasks=CLASSIFICATION,
         stages=ALL_STAGES,
         help="tiles to patient; `top_k_mean` is of the 10 highest, `fraction_positive` the share of tiles at 0.5 "
              "or above"),
    Knob("ensemble_average", word(*AVERAGES), default="probabilities", group=RECORD, tasks=CLASSIFICATION,
         stages=ALL_STAGES,
         help="mean of the students' probabilities, or softmax of their mean logits"),
    Knob("fusion", word(*FUSIONS), default="anchors", group=RECORD, tasks=DETECTION, stages=ALL_STAGES,
         help="ensemble of detectors: mean of the students anchor by anchor, or weighted box fusion of their boxes."
              " Thresholds stay those that the run chose"),
    Knob("checkpoint_interval", number(0), default=10, group=RECORD, recorded=False,
         help="minutes between [checkpoints](../how_to/resume_and_reproduce.md) within an epoch, from which a killed "
              "run goes on; 0 for after epochs only. Does not change results"),
    Knob("keep_checkpoints", whole(1), default=1, group=RECORD, recorded=False,
         help="how many checkpoints to keep: `last.pt`, and before it `step_<iteration>.pt`"),
    Knob("log_interval", whole(1), default=1, group=RECORD, recorded=False,
         help="iterations between two points of a loss curve in TensorBoard and MLflow"),
    Knob("tracking", word("none", "mlflow"), default="none", group=RECORD, recorded=False,
         help="hand settings and figures to [MLflow](../how_to/stop_average_track.md#track-with-mlflow), too; needs "
              "`pip install 'kdml_med[tracking]'`"),
    Knob("tracking_uri", optional(TEXT, "a database in `run_dir`"), default=None, group=RECORD, recorded=False,
         help="address of MLflow, such as `sqlite:///runs/mlruns.db` or that of a server"),
    Knob("experiment_name", TEXT, default="kdml_med", group=RECORD, recorded=False,
         help="heading under which MLflow lists the run"),
    Knob("profile", optional(PATH), default=None, group=RECORD, recorded=False,
         help="folder for a [trace of some training steps](../how_to/training_speed.md#trace)"),
    Knob("split", word(*Split), default="test", group=USE, stages=("evaluate",), recorded=False,
         help="what is evaluated"),
    Knob("output_dir", PATH, default=Shown("`<run_dir>/evaluation_<split>`, `<run_dir>/inference`"), group=USE,
         stages=("evaluate", "inference"), recorded=False,
         help="where results go; older ones there are replaced"),
    Knob("measure_speed", FLAG, default=True, group=USE, tasks=DETECTION, stages=("evaluate",), recorded=False,
         help="time every network, one frame after the other, and write `speed.json`"),
    Knob("source", optional(PATH, "`dataset_dir`"), default=None, tasks=DETECTION, **_USE,
         help="image, video, or a folder with them"),
    Knob("slides", optional(one_or_each(PATH, "slide or folder"), "`dataset_dir`"), default=None, tasks=CLASSIFICATION,
         **_USE, help="slide, or folder with slides, that is [predicted from the file](../how_to/predict_slides.md) "
                      "with the options of the run's tiles; `num_workers` are the cores to use"),
    Knob("network", TEXT, default="ensemble", tasks=CLASSIFICATION, **_USE,
         help="`ensemble`, a student or `teacher`: whose probabilities slides get"),
    Knob("annotations", optional(PATH, "none"), default=None, tasks=DETECTION, **_USE,
         help="boxes of the frames of `source`, in any [format of `prepare_frames`](frames.md): tables and sheets say "
              "what was missed and what is a false alarm"),
    Knob("network", TEXT, default="ensemble", tasks=DETECTION, **_USE,
         help="whose boxes are drawn, written as COCO and handed over for correction"),
    Knob("students_only", FLAG, default=Shown("`True`, but for `--network teacher`"), **_USE,
         help="leave the teacher out"),
    Knob("annotate", FLAG, default=False, tasks=DETECTION, **_USE,
         help="draw the boxes: a video for each video, contact sheets of images and of annotated frames"),
    Knob("maps", FLAG, default=Shown("`True` for `slides`"), tasks=CLASSIFICATION, **_USE,
         help="write [heat maps](../how_to/heat_maps.md) and sheets of tiles for each slide"),
    Knob("corrections", optional(some_of(*CORRECTION_FORMATS), "none"), default=None, tasks=DETECTION, **_USE,
         help="write the boxes for correction in an annotation tool"),
    Knob("correction_images", FLAG, default=True, tasks=DETECTION, **_USE,
         help="put the images beside them, and frames of videos as JPEG; False writes the annotation files only"),
    Knob("fps", number(0), default=5, tasks=DETECTION, **_USE,
         help="frames per second taken from a video; 0 for all"),
    Knob("roi", optional(PATH, "the whole slide"), default=None, tasks=CLASSIFICATION, **_USE,
         help="GeoJSON with the regions of a slide that count, or folder with `<slide>.geojson` for each"),
    Knob("assume_mpp", optional(number(0, above=True), "none"), default=None, tasks=CLASSIFICATION, **_USE,
         help="micrometres per pixel of slides whose header says nothing or nonsense"),
    Knob("labels", optional(PATH, "no labels"), default=None, tasks=CLASSIFICATION, **_USE,
         help="table with patients and labels of the slides"),
    Knob("runtime", word(*get_args(Runtime)), default="auto", tasks=CLASSIFICATION, **_USE,
         help="what computes the networks on slides; `auto` takes ONNX Runtime on a CPU where it is installed"),
    Knob("student", TEXT, default="student_0", **_USE,
         help="for export only: the network that `student_def` builds"),
    Knob("batch_size", whole(1), default=_by_task(64, 16), tasks=BOTH, **_USE,
         help="samples of a batch"),
]
# fmt: on
