"""The files of a trial: checkpoints, manifests, settings, test results."""

from fgseg.checkpoints.manifest import Manifest, find, list_manifests

__all__ = ["Manifest", "find", "list_manifests"]
