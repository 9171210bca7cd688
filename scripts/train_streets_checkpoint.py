"""Train the checkpoint that ships as `model.name: streets`: python scripts/train_streets_checkpoint.py FOLDER

A small SegFormer with the classes of configs/labels/streets.yaml, trained from random weights on procedural street
scenes.  Takes about eight minutes on one core; the same command with the same FOLDER resumes.  Replaces the files in
fgseg/model/streets/.
"""

import argparse
from pathlib import Path

from safetensors.torch import load, save

from fgseg.checkpoints import find
from fgseg.checkpoints.manifest import read_weights
from fgseg.checkpoints.trial_files import CONFIG
from fgseg.config.loading import Layer, build
from fgseg.data.geometry import Geometry
from fgseg.inference.export import model_files, replace_folder
from fgseg.inference.model_card import model_card
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
    "model.drop_path": 0.0,
    "train.epochs": 4,
    "train.batch_size": 4,
    "train.lr": 5e-3,
    "train.warmup": 0.05,
    "augment.flip_prob": 0.5,
}


def main() -> None:
    """Train, and replace the shipped files by the weights of the last epoch in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="receives the checkpoints of the training")
    folder = parser.parse_args().folder
    run = build([Layer("SETTINGS", SETTINGS)])
    history = train(run, folder, lambda result: print(line(result, run.train.epochs), flush=True))
    store = open_store(folder)
    manifest = find(store, run.train.epochs)
    assert manifest is not None
    weights = {
        name: v.half() if v.is_floating_point() else v for name, v in load(read_weights(store, manifest)).items()
    }
    origin = "Trained by `python scripts/train_streets_checkpoint.py FOLDER`."
    card = model_card("streets", origin, run, history[-1])
    files = model_files(store.get(CONFIG), save(weights), Geometry.of(run.data), card)
    replace_folder(TARGET, files)


if __name__ == "__main__":
    main()
