"""Confusion counts, IoU, boundary IoU and the evaluation loop."""
