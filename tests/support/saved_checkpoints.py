"""Checkpoints of a model of three numbers."""

import torch
from builders import make_epoch

from fgseg.checkpoints.checkpoint import Checkpoints
from fgseg.results import EpochResult


def epoch(number: int, miou: float = 0.5) -> EpochResult:
    iou = {"fence": miou, "car": float("nan")}
    return make_epoch(number, miou, iou=iou)


def history(epochs: int) -> list[EpochResult]:
    return [epoch(k) for k in range(1, epochs + 1)]


def save(checkpoints: Checkpoints, epochs: int, select: str = "last", results: list[EpochResult] | None = None) -> None:
    model = {"weight": torch.full((3,), float(epochs))}
    checkpoints.save(model, {"optimizer": {"step": epochs}}, (results or history(epochs))[:epochs], select)
