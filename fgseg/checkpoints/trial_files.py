"""The settings and the model's `config.json` in a trial's store.  Needs no torch."""

import json
from collections.abc import Mapping
from typing import Any

from fgseg.config.settings import RunConfig
from fgseg.storage.store import Store

CONFIG, SETTINGS, PROCESSOR, WEIGHTS = "config.json", "settings.json", "preprocessor_config.json", "model.safetensors"


def save_model_files(store: Store, run: RunConfig, architecture: Mapping[str, Any]) -> None:
    """Write a trial's settings and its model's `config.json`, without which its checkpoints cannot be loaded.

    Args:
        store: the trial's files.
        run: the settings.
        architecture: contents of `config.json`, see `fgseg.model.segformer.architecture`.
    """
    for name, content in ((SETTINGS, run.flat()), (CONFIG, architecture)):
        store.put(name, json.dumps(content, indent=1).encode())
