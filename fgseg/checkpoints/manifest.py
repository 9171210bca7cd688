"""Manifests of a trial's checkpoints, the blobs that they name, and the claims of attempts.  Needs no torch."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fgseg.results import EpochResult
from fgseg.storage.store import Store

log = logging.getLogger(__name__)

MANIFEST = re.compile(r"checkpoint-(\d{6})-(\d{6})\.json")
CLAIM = re.compile(r"attempt-(\d{6})")
OWNED = re.compile(r"(?:checkpoint|model|state)-(\d{6})-\d{6}\.\w+")
"""Names of manifests and blobs; the group is the attempt that wrote them."""


@dataclass(frozen=True)
class Blob:
    """A file named by a manifest, with the size in bytes and SHA-256 (hex) by which `read_blob` verifies it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The parts of a checkpoint: its blobs, and the results of every epoch of the trial, oldest first."""

    attempt: int
    epoch: int
    blobs: list[Blob]
    history: list[EpochResult]

    @property
    def name(self) -> str:
        """File name of the manifest in the trial's store."""
        return f"checkpoint-{self.attempt:06d}-{self.epoch:06d}.json"

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON."""
        blobs = {blob.name: {"bytes": blob.bytes, "sha256": blob.sha256} for blob in self.blobs}
        return json.dumps(vars(self) | {"blobs": blobs, "history": [e.to_json() for e in self.history]}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read the JSON of `to_bytes`; raises ValueError, KeyError, TypeError or AttributeError for other contents."""
        record = json.loads(data)
        blobs = [Blob(name, **content) for name, content in record["blobs"].items()]
        return cls(**record | {"blobs": blobs, "history": [EpochResult.from_json(e) for e in record["history"]]})


def list_manifests(store: Store) -> list[Manifest]:
    """List the readable manifests, newest first: by attempt, then by epoch; logs a warning for each damaged one."""
    manifests = []
    for name in reversed([n for n in store.list() if MANIFEST.fullmatch(n)]):
        try:
            manifests.append(Manifest.from_bytes(store.get(name)))
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
            log.warning("%s is damaged (%s) and is not used", name, error)
    return manifests


def find(store: Store, epoch: int) -> Manifest | None:
    """Return the newest readable manifest of an epoch, or None."""
    return next((manifest for manifest in list_manifests(store) if manifest.epoch == epoch), None)


def claim_attempt(store: Store, attempt: int) -> None:
    """Record that an attempt has started, which supersedes every lower one; may be repeated."""
    store.put(f"attempt-{attempt:06d}", b"")


def newest_attempt(store: Store) -> int:
    """Return the highest attempt that has claimed a store, or 0."""
    return max((int(m[1]) for name in store.list() if (m := CLAIM.fullmatch(name))), default=0)


def keep_only(store: Store, needed: Iterable[Manifest], attempt: int) -> None:
    """Delete the manifests and blobs of this attempt and lower ones, except the needed ones; may be repeated."""
    kept = {name for m in needed for name in (m.name, *(blob.name for blob in m.blobs))}
    # Manifests first: if the process dies halfway, no manifest names a deleted blob.
    for name in sorted(store.list(), key=lambda n: MANIFEST.fullmatch(n) is None):
        owner = OWNED.fullmatch(name)
        if owner and int(owner[1]) <= attempt and name not in kept:
            store.delete(name)


def read_weights(store: Store, manifest: Manifest) -> bytes:
    """Read and verify the weights of a checkpoint, a safetensors file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has another size or checksum than in the manifest, or the manifest names no weights.
    """
    return read_blob(store, weights_blob(manifest))


def weights_blob(manifest: Manifest) -> Blob:
    """Return the blob of a checkpoint's weights; raises ValueError if the manifest names none."""
    for blob in manifest.blobs:
        if blob.name.startswith("model-"):
            return blob
    raise ValueError(f"{manifest.name} names no weights")


def read_blob(store: Store, blob: Blob) -> bytes:
    """Read and verify a blob.

    Raises:
        FileNotFoundError: the blob is missing.
        ValueError: it has another size or checksum.
    """
    data = store.get(blob.name)
    if len(data) != blob.bytes:
        raise ValueError(f"{blob.name} has {len(data)} bytes instead of {blob.bytes}")
    if digest(data) != blob.sha256:
        raise ValueError(f"{blob.name} was altered (its SHA-256 differs)")
    return data


def make_blob(name: str, data: bytes) -> Blob:
    """Return the name, size and checksum of a file to be written."""
    return Blob(name, len(data), digest(data))


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
