"""A small SegFormer with the 19 classes of Cityscapes, as the hub's checkpoints have them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from thin_street import THIN_STREET
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from fgseg.model.segformer import quiet, scratch_config

CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
LABELS = [0, 0, 0, 0, 1, 4, 6, 5, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]
"""Label of each of the 19 classes."""


def save_checkpoint(folder: Path, names: Sequence[str] = CITYSCAPES, seed: int = 0) -> str:
    """Save a model with random weights whose logits are far from equal; returns the folder."""
    torch.manual_seed(seed)
    sizes = SegformerConfig(**scratch_config("small", THIN_STREET).to_dict())
    sizes.id2label = dict(enumerate(names))
    sizes.label2id = {name: k for k, name in enumerate(names)}
    model = SegformerForSemanticSegmentation(sizes)
    with torch.no_grad(), quiet():
        model.decode_head.classifier.weight.mul_(30)
        model.save_pretrained(folder)
    return str(folder)
