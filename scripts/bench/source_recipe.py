"""Plain reimplementation of the source's recipe for the benchmarks: PNG files, PIL copy-paste, HF Trainer.

The results equal those of `fgseg`; order and cost of the operations are those of the source's notebook.
"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

CLASSES = 7
IGNORED = 255
IDS = {13: 1, 26: 2, 21: 3, 17: 4, 20: 5, 19: 6}
"""Cityscapes ID -> label; every other ID is background."""
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
WARM_UP = 5
"""Steps that are not timed, while loaders fill and kernels are selected."""


class Ssim(nn.Module):
    """Loss 1 - SSIM, with an 11x11 convolution for each of five moments."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.arange(11, dtype=torch.float32) - 5
        line = torch.exp(-(taps**2) / (2 * 1.5**2))
        line = (line / line.sum()).unsqueeze(1)
        self.register_buffer("window", (line @ line.T).expand(CLASSES, 1, 11, 11).contiguous())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (F.pad(maps, (5, 5, 5, 5), mode="reflect") for maps in (a, b))

        def blur(maps: Tensor) -> Tensor:
            return F.conv2d(maps, self.window, groups=CLASSES)

        mean_a, mean_b = blur(a), blur(b)
        var_a = torch.clamp(blur(a * a) - mean_a.pow(2), min=0)
        var_b = torch.clamp(blur(b * b) - mean_b.pow(2), min=0)
        both = blur(a * b) - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        return 1 - (top / ((mean_a.pow(2) + mean_b.pow(2) + c1) * (var_a + var_b + c2))).mean()


class Hybrid(nn.Module):
    """Loss of approaches 1 and 2: cross-entropy + 0.4 SSIM + 0.5 soft IoU, with three synchronising `item` calls."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = Ssim()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, probs, target = prepared(logits, labels)
        entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED)
        ssim = self.ssim(probs, target)
        inter = (probs * target).sum((2, 3))
        union = probs.sum((2, 3)) + target.sum((2, 3)) - inter
        iou = 1 - ((inter + 1e-6) / (union + 1e-6)).mean()
        for term in (entropy, ssim, iou):
            term.item()
        return entropy + 0.4 * ssim + 0.5 * iou


class Ultimate(nn.Module):
    """Loss of approach 3: 1.1 weighted cross-entropy + 0.5 SSIM + 0.5 Lovász, which sorts once per class."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = Ssim()
        self.register_buffer("weights", torch.tensor([1.0, 5, 1, 1, 5, 5, 2]))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, probs, target = prepared(logits, labels)
        entropy = F.cross_entropy(logits, labels, weight=self.weights, ignore_index=IGNORED)
        flat = F.softmax(logits, 1).permute(0, 2, 3, 1).contiguous().view(-1, CLASSES)
        return 1.1 * entropy + 0.5 * self.ssim(probs, target) + 0.5 * lovasz(flat, labels.view(-1))


def prepared(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return upsampled logits, probabilities and one-hot labels, all (B, 7, H, W) float32; both zero at ignored pixels.

    Args:
        logits: (B, 7, h, w).
        labels: (B, H, W) int64, IGNORED where unlabelled.
    """
    logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    valid = labels != IGNORED
    filled = labels.clone()
    filled[~valid] = 0
    target = F.one_hot(filled, CLASSES).permute(0, 3, 1, 2).float()
    mask = valid.unsqueeze(1).float()
    return logits, F.softmax(logits, 1) * mask, target * mask


def lovasz(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the Lovász-Softmax loss of (P, 7) probabilities and (P,) labels, a scalar."""
    valid = labels != IGNORED
    if valid.sum() == 0:
        return probs.sum() * 0
    probs, labels = probs[valid], labels[valid]
    losses = []
    for c in range(CLASSES):
        truth = (labels == c).float()
        if truth.sum() == 0:
            continue
        errors, order = torch.sort((truth - probs[:, c]).abs(), 0, descending=True)
        hits = truth[order]
        total = hits.sum()
        jaccard = 1 - (total - hits.cumsum(0)) / (total + (1 - hits).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
        losses.append(torch.dot(errors, jaccard))
    return sum(losses) / CLASSES


def remap(ids: np.ndarray) -> np.ndarray:
    """Convert Cityscapes IDs to labels 0 to 6, uint8."""
    labels = np.zeros_like(ids, dtype=np.uint8)
    for identity, label in IDS.items():
        labels[ids == identity] = label
    return labels


class Streets(Dataset):
    """Decodes, resizes and copy-pastes PNG files one at a time; repeats them up to `length`."""

    def __init__(self, root: Path, height: int, width: int):
        self.size = (width, height)
        self.images = sorted((root / "leftImg8bit" / "train").glob("*/*_leftImg8bit.*"))
        self.length = 10**6

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, ids = self.files(index)
        image = image.resize(self.size, Image.Resampling.BILINEAR)
        labels = remap(np.array(ids.resize(self.size, Image.Resampling.NEAREST)))
        image, labels = self.copy_paste(image, labels)
        pixels = (np.asarray(image).astype(np.float32) / 255 - MEAN) / STD
        return {
            "pixel_values": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "labels": torch.tensor(labels).long(),
        }

    def files(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Open the image and the label IDs of a frame."""
        path = self.images[index % len(self.images)]
        name = path.name.split("_leftImg8bit")[0] + "_gtFine_labelIds.png"
        label = path.parents[3] / "gtFine" / "train" / path.parent.name / name
        return Image.open(path).convert("RGB"), Image.open(label)

    def copy_paste(self, image: Image.Image, labels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """Paste random classes of a random frame, with probability 0.5; labels are (H, W) uint8."""
        if random.random() > 0.5:
            return image, labels
        source, ids = self.files(random.randrange(len(self.images)))
        source = source.resize(self.size, Image.Resampling.BILINEAR)
        source_labels = np.array(Image.fromarray(remap(np.array(ids))).resize(self.size, Image.Resampling.NEAREST))
        if random.random() > 0.5:
            source, source_labels = source.transpose(Image.Transpose.FLIP_LEFT_RIGHT), np.fliplr(source_labels).copy()
        present = [c for c in range(1, CLASSES) if c in source_labels]
        if not present:
            return image, labels
        chosen = random.sample(present, random.randint(1, len(present)))
        alpha = np.isin(source_labels, chosen).astype(np.float32)
        wide = alpha[:, :, None]
        mixed = np.array(source).astype(np.float32) * wide + np.array(image).astype(np.float32) * (1 - wide)
        return Image.fromarray(mixed.astype(np.uint8)), np.where(alpha > 0, source_labels, labels)


def build_model(widths: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...], decoder: int) -> nn.Module:
    """Build a SegFormer with random weights and the decode head of Transformers."""
    config = SegformerConfig(
        hidden_sizes=list(widths),
        depths=list(depths),
        num_attention_heads=list(heads),
        decoder_hidden_size=decoder,
        num_labels=CLASSES,
    )
    return SegformerForSemanticSegmentation(config)


class HybridTrainer(Trainer):
    """HF Trainer with the source's loss."""

    def __init__(self, *args: Any, criterion: nn.Module, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.criterion = criterion.to(self.args.device)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.criterion(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class Watch(TrainerCallback):
    """Times the steps after the warm-up, and stops the training after `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self.steps, self.started, self.taken = seconds, 0, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.started = synchronized_time()
        elif state.global_step > WARM_UP:
            self.steps += 1
            if time.perf_counter() - self.started >= self.seconds:
                self.taken = synchronized_time() - self.started
                control.should_training_stop = True

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.taken


def synchronized_time() -> float:
    """Wait for the GPU if there is one; returns the time of `time.perf_counter` in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def protocol(folder: str, batch: int, workers: int, **others: Any) -> TrainingArguments:
    """Return the source's arguments for HF Trainer, overridden by `others`."""
    arguments = {
        "learning_rate": 6e-5,
        "num_train_epochs": 15,
        "per_device_train_batch_size": batch,
        "save_strategy": "no",
        "logging_steps": 25,
        "remove_unused_columns": False,
        "dataloader_num_workers": workers,
        "fp16": torch.cuda.is_available(),
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=folder, **arguments | others)


def train(model: nn.Module, data: Streets, batch: int, workers: int, seconds: float) -> float:
    """Train under HF Trainer with the source's arguments; returns images per second."""
    watch = Watch(seconds)
    with tempfile.TemporaryDirectory() as folder:
        arguments = protocol(folder, batch, workers)
        trainer = HybridTrainer(model=model, args=arguments, train_dataset=data, callbacks=[watch], criterion=Hybrid())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return batch * watch.steps_per_s


def step_of(model: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a training step on a batch in memory: model, loss, AdamW as in HF Trainer, clipping at norm 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.0, fused=True)

    def step() -> None:
        criterion(model(pixel_values=images).logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
