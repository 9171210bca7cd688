"""Train the checkpoint that ships as `model.name: streets`: python scripts/train_streets_checkpoint.py WORK_FOLDER

A small SegFormer with the classes of configs/labels/streets.yaml, trained from random weights on procedural street
scenes.  Takes less than an hour on two cores; a call with the same WORK_FOLDER continues.  Replaces fgseg/model/streets/.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load, save

from fgseg import checkpoints
from fgseg.checkpoints.manifest import read_weights
from fgseg.checkpoints.trial_files import CONFIG, PROCESSOR, WEIGHTS
from fgseg.config.loading import Layer, build
from fgseg.inference.export import processor_config, replace_folder
from fgseg.storage.store import open_store
from fgseg.train import line
from fgseg.training.loop import train

TARGET = Path(__file__).parent.parent / "fgseg" / "model" / "streets"
SETTINGS = {
    "data.labels": "streets",
    "data.seed": 1,  # other scenes than those of the quickstart
    "data.height": 128,
    "data.width": 256,
    "data.train": 3000,
    "data.val": 100,
    "data.test": 0,
    "model.name": "small",
    "train.epochs": 12,
    "train.batch_size": 4,
    "train.lr": 5e-3,
    "augment.flip_prob": 0.5,
}


def main() -> None:
    """Train, and write the last epoch's weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="receives the training's checkpoints")
    folder = parser.parse_args().folder
    run = build([Layer("SETTINGS", SETTINGS)])
    train(run, folder, lambda result: print(line(result, run.train.epochs), flush=True))
    store = open_store(folder)
    manifest = checkpoints.find(store, run.train.epochs)
    assert manifest is not None
    weights = {key: half(value) for key, value in load(read_weights(store, manifest)).items()}
    size = json.dumps(processor_config(run.data.height, run.data.width), indent=1)
    replace_folder(TARGET, {CONFIG: store.get(CONFIG), PROCESSOR: size.encode(), WEIGHTS: save(weights)})
    print(f"{TARGET}: {(TARGET / WEIGHTS).stat().st_size / 1e6:.2f} MB")


def half(value: torch.Tensor) -> torch.Tensor:
    """Convert a floating tensor to half precision."""
    return value.half() if value.is_floating_point() else value


if __name__ == "__main__":
    main()
