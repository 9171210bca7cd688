"""Checkpoints of one trial: blobs, then the manifest that names them; what no manifest names does not exist."""

import io
import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from fgseg.checkpoints.manifest import (
    Manifest,
    claim_attempt,
    digest,
    keep_only,
    list_manifests,
    newest_attempt,
    verified,
)
from fgseg.distributed import World
from fgseg.results import EpochResult, SupersededError, select_epoch
from fgseg.storage.store import Store

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept of a running trial: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the weights by name, and the state of optimizer, schedule and scaler."""

    manifest: Manifest
    model: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one trial, written by one attempt at a time.

    Args:
        store: where the trial's files are.
        attempt: number of this start of the trial.  It claims the store: from then on every lower one is superseded.

    Raises:
        SupersededError: a higher attempt has claimed the store already.
    """

    def __init__(self, store: Store, attempt: int):
        self.store, self.attempt = store, attempt
        self.check_current()
        claim_attempt(store, attempt)
        store.remove_temporary()

    def check_current(self) -> None:
        """Raise SupersededError if a higher attempt has claimed the store."""
        newest = newest_attempt(self.store)
        if newest > self.attempt:
            raise SupersededError(f"attempt {self.attempt} of this trial was superseded by attempt {newest}")

    def save(self, model: dict[str, Tensor], state: dict[str, Any], history: list[EpochResult], select: str) -> None:
        """Write a checkpoint of the last epoch in `history`, then drop those that are no longer needed.

        Args:
            model: weights by name.
            state: tensors, numbers, texts, lists and dictionaries only.
            history: every epoch so far.
            select: the setting `train.select`; the epoch that it picks is kept.
        """
        stem = f"{self.attempt:06d}-{history[-1].epoch:06d}"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        contents = {
            # As Transformers writes its weights, so that an exported model needs no other bytes.
            f"model-{stem}.safetensors": save_safetensors(
                {k: v.contiguous().cpu() for k, v in model.items()}, metadata={"format": "pt"}
            ),
            f"state-{stem}.pt": buffer.getvalue(),
        }
        self.check_current()
        for name, data in contents.items():
            self.store.put(name, data)
        blobs = {name: {"bytes": len(data), "sha256": digest(data)} for name, data in contents.items()}
        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)
        self.check_current()
        self.store.put(manifest.name, manifest.to_bytes())
        self.drop_unneeded(select_epoch(history, select).epoch)

    def drop_unneeded(self, selected: int) -> None:
        """Delete all but the newest checkpoints and the newest one of the selected epoch."""
        manifests = list_manifests(self.store)
        keep_only(self.store, manifests[:KEPT] + [m for m in manifests if m.epoch == selected][:1], self.attempt)


def newest_checkpoint(store: Store) -> Checkpoint | None:
    """The newest checkpoint whose blobs are what its manifest says, or None; damaged ones are named in a warning."""
    for manifest in list_manifests(store):
        try:
            return load_checkpoint(store, manifest)
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s cannot be used: %s; taking the one before", manifest.name, error)
    return None


def shared_checkpoint(store: Store, world: World) -> Checkpoint | None:
    """Return the checkpoint that `newest_checkpoint` finds in the main process; a collective."""
    newest = newest_checkpoint(store) if world.is_main else None
    manifest = broadcast_object_list([newest.manifest if newest else None])[0]
    return load_checkpoint(store, manifest) if manifest and not world.is_main else newest


def load_checkpoint(store: Store, manifest: Manifest) -> Checkpoint:
    """Read and verify the blobs of a manifest.

    Raises:
        FileNotFoundError: a blob is missing.
        ValueError: a blob has another size or checksum than the manifest says.
    """
    blobs = {name.split("-")[0]: verified(store, name, facts) for name, facts in manifest.blobs.items()}
    state = torch.load(io.BytesIO(blobs["state"]), map_location="cpu", weights_only=True)
    return Checkpoint(manifest, load_safetensors(blobs["model"]), state)
