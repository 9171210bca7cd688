"""Which checkpoints a trial has: manifests, the blobs that they name, and the claims of attempts.  Needs no torch."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fgseg.results import EpochResult
from fgseg.storage.store import Store

log = logging.getLogger(__name__)

MANIFEST = re.compile(r"checkpoint-(\d{6})-(\d{6})\.json")
CLAIM = re.compile(r"attempt-(\d{6})")
OWNED = re.compile(r"(?:checkpoint|model|state)-(\d{6})-\d{6}\.\w+")
"""Manifests and blobs, with the attempt that wrote them."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of: its blobs with size and SHA-256, and the record of every epoch so far."""

    attempt: int
    epoch: int
    blobs: dict[str, dict[str, Any]]
    history: list[EpochResult]

    @property
    def name(self) -> str:
        """The manifest's own name in the store."""
        return f"checkpoint-{self.attempt:06d}-{self.epoch:06d}.json"

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        history = [e.to_json() for e in self.history]
        return json.dumps(vars(self) | {"history": history}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The inverse of `to_bytes`; raises ValueError, KeyError or TypeError for anything else."""
        record = json.loads(data)
        return cls(**record | {"history": [EpochResult.from_json(e) for e in record["history"]]})


def list_manifests(store: Store) -> list[Manifest]:
    """Every readable manifest, newest first: higher attempts before lower ones, then later epochs before earlier."""
    manifests = []
    for name in reversed([n for n in store.list() if MANIFEST.fullmatch(n)]):
        try:
            manifests.append(Manifest.from_bytes(store.get(name)))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            log.warning("%s is damaged (%s) and is not used", name, error)
    return manifests


def claim_attempt(store: Store, attempt: int) -> None:
    """Make every lower attempt a superseded one."""
    store.put(f"attempt-{attempt:06d}", b"")


def newest_attempt(store: Store) -> int:
    """The highest attempt that has claimed a store; 0 where none has."""
    return max((int(m[1]) for name in store.list() if (m := CLAIM.fullmatch(name))), default=0)


def keep_only(store: Store, needed: Iterable[Manifest], attempt: int) -> None:
    """Delete every manifest and blob of this attempt and lower ones that is not needed; manifests go first."""
    kept = {name for m in needed for name in (m.name, *m.blobs)}
    for name in sorted(store.list(), key=lambda n: MANIFEST.fullmatch(n) is None):
        owner = OWNED.fullmatch(name)
        if owner and int(owner[1]) <= attempt and name not in kept:
            store.delete(name)


def read_weights(store: Store, manifest: Manifest) -> bytes:
    """The weights of a checkpoint, whole, as a safetensors file.

    Raises:
        FileNotFoundError: the blob is missing.
        ValueError: it has another size or checksum than the manifest says, or the manifest names none.
    """
    for name, facts in manifest.blobs.items():
        if name.startswith("model-"):
            return verified(store, name, facts)
    raise ValueError(f"{manifest.name} names no weights")


def verified(store: Store, name: str, facts: dict[str, Any]) -> bytes:
    """A blob's bytes, if they are those that the manifest describes; raises FileNotFoundError or ValueError."""
    data = store.get(name)
    if len(data) != facts["bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes instead of {facts['bytes']}")
    if digest(data) != facts["sha256"]:
        raise ValueError(f"{name} was altered (its SHA-256 differs)")
    return data


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
