"""What one worker does: train the trial that it was handed, and report every epoch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from fgseg.config import Layer, build
from fgseg.epoch import EpochResult, SupersededError


@dataclass(frozen=True)
class Job:
    """One start of one trial, as it travels to a worker."""

    number: int
    attempt: int
    settings: dict[str, Any]
    """Every dotted setting of the model."""
    folder: str
    """The trial's folder."""
    threads: int
    """Processor threads that the trial may use."""


def run_trial(config: dict[str, Any]) -> None:
    """Ray Tune's trainable: train, and report after every epoch.

    A report carries every epoch of the trial so far, so that the ledger can be repaired from any one of them.  What the
    training raises is reported as the trial's end, since trying it again would raise it again; only a death of the
    process reaches Ray as an error.
    """
    job = Job(**config)
    epochs: list[EpochResult] = []
    try:
        work(job, epochs)
    except SupersededError:
        return
    except Exception as error:  # whatever it is, it ends this trial and not the search
        report(job, epochs, error=f"{type(error).__name__}: {error}")


def work(job: Job, epochs: list[EpochResult]) -> None:
    """Train the job's model to its end; `epochs` grows with every epoch, from the folder's checkpoint on."""
    import torch

    from fgseg.checkpoint import newest_checkpoint
    from fgseg.store import LocalStore
    from fgseg.train import train

    torch.set_num_threads(job.threads)
    run = build([Layer(f"trial {job.number}", job.settings)])
    folder = Path(job.folder)
    if checkpoint := newest_checkpoint(LocalStore(folder)):
        epochs += checkpoint.manifest.history
        report(job, epochs)

    def on_epoch(result: EpochResult) -> None:
        epochs.append(result)
        report(job, epochs)

    if len(epochs) < run.train.epochs:
        train(run, folder, on_epoch, job.attempt)


def report(job: Job, epochs: list[EpochResult], error: str | None = None) -> None:
    """Tell the driver where the trial stands; returns when it has taken note."""
    tune.report(
        {
            "number": job.number,
            "attempt": job.attempt,
            "epoch": len(epochs),
            "epochs": [e.to_json() for e in epochs],
            "error": error,
        }
    )
