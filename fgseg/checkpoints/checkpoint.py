"""Checkpoints of one trial: blobs, written first, and a manifest that names them; blobs without one are ignored."""

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
    find,
    keep_only,
    list_manifests,
    make_blob,
    newest_attempt,
    read_blob,
)
from fgseg.distributed import World
from fgseg.results import EpochResult, SupersededError, select_epoch
from fgseg.storage.store import Store

log = logging.getLogger(__name__)

NUM_TO_KEEP = 2
"""Checkpoints kept of a running trial: the newest, and the previous one in case the newest is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the weights by name (CPU), and the state of optimizer, schedule and scaler."""

    manifest: Manifest
    model: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of one trial, in one process and thread.

    Args:
        store: the trial's files.
        attempt: number of this start of the trial, from 1.  It claims the store: lower attempts are superseded.

    Raises:
        SupersededError: a higher attempt has already claimed the store.
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
        """Write a checkpoint of the last epoch in `history`, then delete those that are no longer needed.

        May be repeated: it overwrites the files of the same attempt and epoch.

        Args:
            model: weights by name, on any device.
            state: tensors, numbers, strings, lists and dictionaries only, as `torch.load(weights_only=True)` demands.
            history: every epoch of the trial, oldest first.
            select: the setting `train.select`; the checkpoint of the epoch that it selects is kept.

        Raises:
            SupersededError: a higher attempt has claimed the store; no manifest is written.  A process that is frozen
                between this check and the write may still write one; the next run of the study deletes it.
        """
        stem = f"{self.attempt:06d}-{history[-1].epoch:06d}"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        contents = {
            # With the metadata of Transformers' own files, so that an export copies the bytes unchanged.
            f"model-{stem}.safetensors": save_safetensors(
                {k: v.contiguous().cpu() for k, v in model.items()}, metadata={"format": "pt"}
            ),
            f"state-{stem}.pt": buffer.getvalue(),
        }
        self.check_current()
        for name, data in contents.items():
            self.store.put(name, data)
        blobs = [make_blob(name, data) for name, data in contents.items()]
        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)
        self.check_current()
        self.store.put(manifest.name, manifest.to_bytes())
        self._delete_old(select_epoch(history, select).epoch)

    def _delete_old(self, selected: int) -> None:
        """Delete all but the newest NUM_TO_KEEP checkpoints and the newest one of the selected epoch."""
        kept = list_manifests(self.store)[:NUM_TO_KEEP]
        best = find(self.store, selected)
        keep_only(self.store, [*kept, best] if best else kept, self.attempt)


def newest_checkpoint(store: Store) -> Checkpoint | None:
    """Load the newest undamaged checkpoint, or return None; logs a warning for each damaged one."""
    for manifest in list_manifests(store):
        try:
            return load_checkpoint(store, manifest)
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s cannot be used: %s; using the previous one", manifest.name, error)
    return None


def shared_checkpoint(store: Store, world: World) -> Checkpoint | None:
    """Load in every process the checkpoint that `newest_checkpoint` finds in the main one; a collective call."""
    newest = newest_checkpoint(store) if world.is_main else None
    manifest = broadcast_object_list([newest.manifest if newest else None])[0]
    return load_checkpoint(store, manifest) if manifest and not world.is_main else newest


def load_checkpoint(store: Store, manifest: Manifest) -> Checkpoint:
    """Read and verify the blobs of a manifest.

    Raises:
        FileNotFoundError: a blob is missing.
        ValueError: a blob has another size or checksum than in the manifest.
    """
    blobs = {blob.name.split("-")[0]: read_blob(store, blob) for blob in manifest.blobs}
    state = torch.load(io.BytesIO(blobs["state"]), map_location="cpu", weights_only=True)
    return Checkpoint(manifest, load_safetensors(blobs["model"]), state)
