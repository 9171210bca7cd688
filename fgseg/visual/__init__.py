"""Label images and overlays."""
