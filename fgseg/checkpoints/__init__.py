"""What a trial leaves in its folder: checkpoints, manifests, settings, test results."""
