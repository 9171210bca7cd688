"""Train and evaluate one street-view segmentation model."""

__version__ = "0.1.0"
