"""The device that a command's `--device` names."""

import re

import torch

from fgseg.config import ConfigError


def find_device(name: str) -> str:
    """`cpu`, or a GPU of this machine as torch names it.

    Args:
        name: `cpu`, `cuda`, `cuda:<number>`, or `auto`: a GPU where there is one.

    Raises:
        ConfigError: another name, or a GPU that this machine has not.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    form = re.fullmatch(r"cuda(?::(\d+))?", name)
    if form is None:
        raise ConfigError(f"--device: got {name!r}, must be cpu, cuda, cuda:<number> or auto")
    if int(form[1] or 0) >= count:
        raise ConfigError(f"--device: got {name}, this machine has {count} GPUs; use cpu or auto")
    return name
