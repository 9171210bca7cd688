"""The files of a trial: checkpoints, manifests, settings, test results."""
