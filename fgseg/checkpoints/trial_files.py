"""The settings and the model's `config.json` in a trial's store.  Needs no torch."""

import json
from collections.abc import Mapping
from typing import Any

from fgseg.config.settings import RunConfig
from fgseg.storage.store import Store

CONFIG, SETTINGS, PROCESSOR, WEIGHTS = "config.json", "settings.json", "preprocessor_config.json", "model.safetensors"

LABEL_SET = "label_set"
"""Key of `config.json` that holds the label set; Transformers ignores it."""


def save_model_files(store: Store, run: RunConfig, architecture: Mapping[str, Any]) -> None:
    """Write a trial's settings and its model's `config.json`, without which its checkpoints cannot be loaded.

    `config.json` also holds the label set, for the colours of predictions.

    Args:
        store: the trial's files.
        run: the settings.
        architecture: contents of `config.json`, see `fgseg.model.segformer.architecture`.
    """
    described = {**architecture, LABEL_SET: run.label_set().to_json()}
    for name, content in ((SETTINGS, run.flat()), (CONFIG, described)):
        store.put(name, json.dumps(content, indent=1).encode())
