"""Find a trained model: an exported folder, a hub id, or a trial's checkpoints.  Only `load_trained` needs torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.checkpoints.manifest import Manifest, list_manifests, read_weights
from fgseg.checkpoints.trial_files import CONFIG, PROCESSOR, SETTINGS, WEIGHTS
from fgseg.config.errors import ConfigError, one_line
from fgseg.labels import CLASSES
from fgseg.model.pretrained import VARIANTS, check_weights, fetch_weights
from fgseg.results import select_epoch
from fgseg.storage.store import REMOTE, LocalStore, local_files

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

WHERE = "MODEL"
KINDS = "name an exported folder, a hub id, or a folder of checkpoints"


@dataclass(frozen=True)
class TrainedModel:
    """A model that was found; nothing of its weights has been read."""

    folder: Path
    size: tuple[int, int] | None
    """Height and width of the frames on which it was trained; None where the folder does not say."""
    manifest: Manifest | None
    """Of its weights, in a folder of checkpoints."""

    def weights(self) -> bytes:
        """Its weights as a safetensors file; raises ValueError or FileNotFoundError where they are damaged or gone."""
        if self.manifest is None:
            return (self.folder / WEIGHTS).read_bytes()
        return read_weights(LocalStore(self.folder), self.manifest)


@contextmanager
def open_trained_model(name: str) -> Iterator[TrainedModel]:
    """`find_trained`, also of a folder in a bucket, which is copied onto this machine for the while."""
    if REMOTE.match(name):
        with local_files(name) as folder:
            yield find_trained(str(folder))
    else:
        yield find_trained(name)


def find_trained(name: str) -> TrainedModel:
    """Find a trained model with our seven classes; a hub id is fetched.

    Args:
        name: an exported folder, a hub id, or a folder of checkpoints, of which the epoch that stands for the trial is
            taken, or the newest where that epoch is not there yet.

    Raises:
        ConfigError: it is none of these, or has other classes.
    """
    if name in VARIANTS and not Path(name).exists():
        raise ConfigError(f"{WHERE}: {name} is a model with random weights; {KINDS}")
    folder = Path(name).expanduser()
    manifests = list_manifests(LocalStore(folder))
    if manifests:
        return find_checkpoint(folder, manifests)
    check_weights(name, WHERE)
    folder = fetch_weights(name, WHERE) or folder
    check_classes(name, folder)
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{WHERE}: {name} has no {WEIGHTS}; {KINDS}")
    return TrainedModel(folder, frame_size(folder), None)


def find_checkpoint(folder: Path, manifests: list[Manifest]) -> TrainedModel:
    """The model in a folder of checkpoints, the newest of which comes first."""
    check_classes(str(folder), folder)
    settings = read_json(folder / SETTINGS)
    selected = select_epoch(manifests[0].history, settings["train.select"]).epoch
    manifest = next((m for m in manifests if m.epoch == selected), manifests[0])
    return TrainedModel(folder, (settings["data.height"], settings["data.width"]), manifest)


def check_classes(name: str, folder: Path) -> None:
    """Raise ConfigError unless a folder's model tells our seven classes apart."""
    found = read_json(folder / CONFIG).get("id2label", {})
    if found != {str(c.label): c.name for c in CLASSES}:
        ours = ", ".join(c.name for c in CLASSES)
        raise ConfigError(
            f"{WHERE}: {name} has {len(found)} other classes, must have {ours}; fine-tune it first, by model.name"
        )


def frame_size(folder: Path) -> tuple[int, int] | None:
    """Height and width to which a folder's image processor resizes; None where there is none."""
    if not (folder / PROCESSOR).is_file():
        return None
    size = read_json(folder / PROCESSOR).get("size")
    if isinstance(size, int):
        return size, size
    return (size["height"], size["width"]) if isinstance(size, dict) and {"height", "width"} <= size.keys() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; raises ConfigError where it is missing or is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise ConfigError(f"{WHERE}: {path} cannot be read ({reason}); {KINDS}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{WHERE}: {path} holds no mapping; {KINDS}")
    return content


def load_trained(found: TrainedModel, device: str = "cpu") -> "SegformerForSemanticSegmentation":
    """A trained model in evaluation mode, with the decode head of training.

    Args:
        found: where it lies.
        device: as torch names it, such as `cuda:0`.

    Raises:
        ConfigError: its weights are missing, damaged, or not those of its `config.json`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from fgseg.model.decode_head import commute_head
    from fgseg.model.segformer import quiet

    with quiet():
        config = SegformerConfig.from_json_file(found.folder / CONFIG)
        model = SegformerForSemanticSegmentation(config)
        try:
            model.load_state_dict(load(found.weights()))
        except (RuntimeError, SafetensorError, ValueError, OSError) as error:
            reason = one_line(error, first_line=True)
            raise ConfigError(
                f"MODEL: the weights in {found.folder} cannot be used ({reason}); export it anew"
            ) from None
    return commute_head(model).to(device).eval()
