"""SegFormer with a head for the classes of a label set: from random weights, a checkpoint's folder or the hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging as transformers_logging

from fgseg.config.errors import ConfigError, one_line
from fgseg.labels import LabelSet
from fgseg.model.attention import group_attention
from fgseg.model.decode_head import commute_head
from fgseg.model.pretrained import SHIPPED, VARIANTS, check_weights, fetch_weights, is_folder


def build_model(name: str, classes: LabelSet, drop_path: float | None = None) -> SegformerForSemanticSegmentation:
    """Build a SegFormer that maps normalised images (B, 3, H, W) float32 to logits (B, C, H/4, W/4).

    Args:
        name: a variant (random weights), a shipped checkpoint, a folder or a hub id.  A head with other classes is
            replaced by one with random weights, as in the source.
        classes: the label set, of C classes.
        drop_path: the setting `model.drop_path`; None keeps that of the checkpoint.

    Raises:
        ConfigError: the name is none of these, its weights are not those of a SegFormer, or the hub cannot be reached.
    """
    check_weights(name)
    changes = {} if drop_path is None else {"drop_path_rate": drop_path}
    if name in VARIANTS:
        return make_fast(SegformerForSemanticSegmentation(scratch_config(name, classes, **changes)))
    fetch_weights(name)
    options = head_config(classes) | changes
    return make_fast(load_pretrained(name, "segformer.", ignore_mismatched_sizes=True, **options))


def make_fast(model: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """Let a model compute the same function faster; weights and saved files stay the same."""
    return group_attention(commute_head(model))


def load_pretrained(
    name: str, needed: str = "", where: str = "model.name", **options: Any
) -> SegformerForSemanticSegmentation:
    """Load a checkpoint from a folder or the hub cache, in float32.

    Args:
        name: a shipped checkpoint, a folder or a hub id.
        needed: beginning of the names of the weights that the checkpoint must have; by default of all.
        where: setting or argument that holds the name, for messages.
        options: of `from_pretrained`, such as the classes of a new head; by default the checkpoint's own.

    Raises:
        ConfigError: the weights cannot be read, or needed ones are missing.
    """
    source = SHIPPED.get(name) or (Path(name).expanduser() if is_folder(name) else name)
    try:
        with quiet():
            model, loaded = SegformerForSemanticSegmentation.from_pretrained(
                str(source),
                output_loading_info=True,
                dtype=torch.float32,  # weights stored in half precision are trained in float32, too
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{where}: {name} cannot be loaded ({one_line(error, first_line=True)}); fetch it again"
        ) from None
    check_loaded(name, loaded, needed, where)
    return model


def check_loaded(name: str, loaded: dict[str, Any], needed: str, where: str) -> None:
    """Raise ConfigError if a checkpoint lacks needed weights: Transformers initialises them at random.

    Args:
        name: of the checkpoint.
        loaded: the loading info of `from_pretrained`.
        needed: beginning of the names of these weights.
        where: setting or argument that holds the name, for messages.
    """
    keys = [*loaded["missing_keys"], *(key if isinstance(key, str) else key[0] for key in loaded["mismatched_keys"])]
    random = sorted(key for key in keys if key.startswith(needed))
    if random:
        part = "encoder's" if random[0].startswith("segformer.") else "decode head's"
        raise ConfigError(
            f"{where}: {name} has no fitting {random[0]} (nor {len(random) - 1} more of the {part} weights); "
            "name a SegFormer as save_pretrained writes it"
        )


def architecture(model: nn.Module) -> dict[str, Any]:
    """Return the contents of a model's `config.json`, from which Transformers builds the same architecture."""
    config = model.config
    assert isinstance(config, SegformerConfig)
    described: dict[str, Any] = json.loads(config.to_json_string())
    return described | {"architectures": [SegformerForSemanticSegmentation.__name__]}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Transformers: its progress bar, and its table of replaced weights, which are replaced on purpose."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def scratch_config(name: str, classes: LabelSet, **changes: float) -> SegformerConfig:
    """Return the configuration of a variant with a head for the classes; `changes` replaces Transformers' defaults."""
    variant = VARIANTS[name]
    return SegformerConfig(
        hidden_sizes=list(variant.widths),
        depths=list(variant.depths),
        num_attention_heads=list(variant.heads),
        decoder_hidden_size=variant.decoder,
        **head_config(classes),
        **changes,
    )


def head_config(classes: LabelSet) -> dict[str, Any]:
    """Return the entries of a SegFormer's configuration that describe its classes."""
    label2id = {c.name: c.label for c in classes.classes}
    return {"num_labels": classes.num_classes, "id2label": classes.id2label, "label2id": label2id}
