"""Find and load a trained model: an exported folder, a hub id, or a trial's checkpoints.

Only `load_trained` and `load_checkpoint` import torch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fgseg.checkpoints.manifest import Manifest, find, list_manifests, read_weights
from fgseg.checkpoints.trial_files import CONFIG, LABEL_SET, PROCESSOR, SETTINGS, WEIGHTS
from fgseg.config.errors import ConfigError, one_line
from fgseg.config.label_sets import parse_label_set
from fgseg.config.loading import validate
from fgseg.config.settings import Fit
from fgseg.data.geometry import Geometry, Size
from fgseg.labels import LabelSet, label_set_of
from fgseg.model.class_names import checkpoint_labels
from fgseg.model.pretrained import VARIANTS, check_weights, fetch_weights
from fgseg.results import select_epoch
from fgseg.storage.store import REMOTE, LocalStore, local_files

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

WHERE = "MODEL"
OTHER_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weights of a hub's model in another form, with which it can be evaluated if its classes are mapped by name."""
GEOMETRY_SETTINGS = ("data.height", "data.width", "data.fit", "data.crop")
"""Settings that decide what a model sees of a picture; one that an earlier version did not record has its default."""
KINDS = "name an exported folder, a hub id, or a folder of checkpoints"


@dataclass(frozen=True)
class TrainedModel:
    """Location of a trained model; its weights are read by `weights`."""

    folder: Path
    geometry: Geometry | None
    """Size of the training frames, and how photos become frames; None if the folder records no size."""
    manifest: Manifest | None
    """Manifest of the weights in a folder of checkpoints; None in an exported folder."""
    classes: LabelSet
    """The classes that its `config.json` names; they have plain colours without a label set there or a shipped one."""
    window: Size | None = None
    """Height and width of the training crops in pixels; None if the model was trained on whole frames."""


@contextmanager
def open_trained_model(name: str) -> Iterator[TrainedModel]:
    """Find a trained model as `find_trained`; a folder in a bucket is copied to this machine until the context ends."""
    if REMOTE.match(name):
        with local_files(name) as folder:
            yield find_trained(str(folder))
    else:
        yield find_trained(name)


def find_trained(name: str) -> TrainedModel:
    """Find a trained model; a hub id is downloaded.

    Args:
        name: an exported folder, a shipped checkpoint, a hub id, or a folder of checkpoints.  Of the latter the epoch
            selected by `train.select` is used, or the newest if the selected one has no checkpoint.

    Raises:
        ConfigError: the name is none of these, or the model does not name its classes.
    """
    if name in VARIANTS and not Path(name).exists():
        raise ConfigError(f"{WHERE}: {name} is a model with random weights; {KINDS}")
    folder = Path(name).expanduser()
    manifests = list_manifests(LocalStore(folder))
    if manifests:
        return find_checkpoint(folder, manifests)
    check_weights(name, WHERE)
    if not folder.exists():
        folder = fetch_weights(name, WHERE) or folder
    classes = model_classes(name, folder)
    if not any((folder / file).is_file() for file in (WEIGHTS, *OTHER_WEIGHTS)):
        raise ConfigError(f"{WHERE}: {name} has no {WEIGHTS}; {KINDS}")
    return TrainedModel(folder, processor_geometry(folder), None, classes, processor_size(folder, "crop_size"))


def find_checkpoint(folder: Path, manifests: list[Manifest]) -> TrainedModel:
    """Find the model in a folder of checkpoints.

    Args:
        folder: the folder.
        manifests: all manifests of the folder, newest first.
    """
    classes = model_classes(str(folder), folder)
    settings = read_json(folder / SETTINGS)
    selected = select_epoch(manifests[0].history, settings["train.select"]).epoch
    manifest = find(LocalStore(folder), selected) or manifests[0]
    recorded = {key: settings[key] for key in GEOMETRY_SETTINGS if key in settings}
    data = validate(recorded, dict.fromkeys(recorded, str(folder / SETTINGS))).data
    return TrainedModel(folder, Geometry.of(data), manifest, classes, data.window)


def model_classes(name: str, folder: Path) -> LabelSet:
    """Return the classes that the `config.json` in a folder lists; raises ConfigError if it lists none."""
    config = read_json(folder / CONFIG)
    found = config.get("id2label") or {}
    names = [found.get(str(label)) for label in range(len(found))]
    if not names or not all(isinstance(each, str) for each in names):
        raise ConfigError(f"{WHERE}: {name} names no classes in {CONFIG}, as id2label; {KINDS}")
    own = parse_label_set(config[LABEL_SET], folder.name, str(folder / CONFIG)) if LABEL_SET in config else None
    return own if own and list(own.id2label.values()) == names else label_set_of(map(str, names))


def labels_by_name(name: str, found: TrainedModel, classes: LabelSet) -> list[int] | None:
    """Return the label of each class of a model with other classes than a label set, by name.

    Args:
        name: of the model, for messages.
        found: the model.
        classes: the label set.

    Returns:
        As `checkpoint_labels`; None if the model has the classes of the label set, by key and in the same order.

    Raises:
        ConfigError: no foreground class has the name of one of the model's, or the model is a folder of checkpoints.
    """
    if found.classes.keys == classes.keys:
        return None
    labels = None if found.manifest else checkpoint_labels(found.folder, classes)
    if labels is None:
        required = ", ".join(c.name for c in classes.classes)
        raise ConfigError(
            f"{WHERE}: {name} has {found.classes.num_classes} other classes, must have {required}; fine-tune it first, "
            "by model.name"
        )
    return labels


def processor_geometry(folder: Path) -> Geometry | None:
    """Return the geometry that a folder's image processor describes; None without a processor or a size.

    A processor without `fit` is that of another tool or of a version that could only stretch: it stretches.

    Raises:
        ConfigError: an unknown `fit`.
    """
    size = processor_size(folder)
    if size is None:
        return None
    fit = read_json(folder / PROCESSOR).get("fit", "stretch")
    if fit not in get_args(Fit):
        raise ConfigError(f"{WHERE}: {folder / PROCESSOR} has fit {fit!r}, must be one of: {', '.join(get_args(Fit))}")
    return Geometry(size, fit)


def processor_size(folder: Path, name: str = "size") -> Size | None:
    """Return a size in a folder's image processor; None without a processor or a height and width.

    Args:
        folder: of the model.
        name: `size`, to which it resizes; or `crop_size`, that of the training crops.
    """
    if not (folder / PROCESSOR).is_file():
        return None
    size = read_json(folder / PROCESSOR).get(name)
    if isinstance(size, int):
        return size, size
    return (size["height"], size["width"]) if isinstance(size, dict) and {"height", "width"} <= size.keys() else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; raises ConfigError if it is missing or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise ConfigError(f"{WHERE}: {path} cannot be read ({reason}); {KINDS}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{WHERE}: {path} holds no mapping; {KINDS}")
    return content


def load_trained(found: TrainedModel, device: str = "cpu") -> "SegformerForSemanticSegmentation":
    """Load a trained model in evaluation mode, with the faster decode head.

    Args:
        found: the location of the model.
        device: name of a torch device, such as `cuda:0`.

    Raises:
        ConfigError: the weights are missing, damaged, or do not fit the `config.json`.
    """
    from fgseg.model.decode_head import commute_head
    from fgseg.model.segformer import load_pretrained

    if found.manifest:
        model = load_checkpoint(found.folder, found.manifest)
    else:
        model = load_pretrained(str(found.folder), where=WHERE)
    return commute_head(model).to(device).eval()


def load_checkpoint(folder: Path, manifest: Manifest) -> "SegformerForSemanticSegmentation":
    """Load the model of a folder of checkpoints.

    Args:
        folder: holds the checkpoints and the `config.json`.
        manifest: of the checkpoint.

    Raises:
        ConfigError: as `load_trained`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from fgseg.model.segformer import quiet

    with quiet():
        model = SegformerForSemanticSegmentation(SegformerConfig.from_json_file(folder / CONFIG))
    try:
        model.load_state_dict(load(read_weights(LocalStore(folder), manifest)))
    except (RuntimeError, SafetensorError, ValueError, OSError) as error:
        reason = one_line(error, first_line=True)
        raise ConfigError(f"{WHERE}: the weights in {folder} cannot be used ({reason})") from None
    return model
