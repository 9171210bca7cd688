"""The files beside a trial's checkpoints: its settings and its model's `config.json`.  Needs no torch."""

import json
from collections.abc import Mapping
from typing import Any

from fgseg.config.settings import RunConfig
from fgseg.storage.store import Store

CONFIG, SETTINGS, PROCESSOR, WEIGHTS = "config.json", "settings.json", "preprocessor_config.json", "model.safetensors"


def save_model_files(store: Store, run: RunConfig, architecture: Mapping[str, Any]) -> None:
    """Keep beside a trial's checkpoints what is needed to use them: its settings, and its model's `config.json`."""
    for name, content in ((SETTINGS, run.flat()), (CONFIG, architecture)):
        store.put(name, json.dumps(content, indent=1).encode())
