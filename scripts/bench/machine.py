"""One line about the machine and the versions of a measurement."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine(*packages: str) -> str:
    """Describe processor, cores, load, and the versions of Python and of these packages."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    return f"{os.cpu_count()} cores of {name}, {os.getloadavg()[0]:.1f} of them busy before the start; {versions}"


def machine_with_gpu() -> str:
    """Describe the machine, its GPU and the versions that training depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{machine('torch', 'transformers')}; {gpu}"


def machine_of_search() -> str:
    """Describe the machine and the versions that the driver of a search depends on."""
    return machine("ray", "optuna", "mlflow")
