"""Open the frames of a data set, and show the progress while they are decoded."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.status import Status

from fgseg.config.settings import DataConfig
from fgseg.data import FrameSet, load_splits

LOG_INTERVAL_S = 10.0
"""Seconds between two lines in a log."""


def read_splits(cfg: DataConfig, names: Sequence[str], console: Console) -> dict[str, FrameSet]:
    """Open splits as `fgseg.data.load_splits`, and show on the console how far their decoding is."""
    with console.status("reading the data") as status:
        return load_splits(cfg, names, decoding_progress(console, status))


def decoding_progress(console: Console, status: Status) -> Callable[[str, int, int], None]:
    """Return a callback that shows the progress of decoding.

    The callback takes a split, the decoded frames and all frames.  It updates a line on a terminal, and otherwise
    prints a line every LOG_INTERVAL_S.
    """
    printed = time.monotonic()

    def show(split: str, done: int, total: int) -> None:
        nonlocal printed
        text = f"decoding the {split} frames: {done} of {total}"
        if console.is_terminal:
            status.update(text)
        elif time.monotonic() - printed > LOG_INTERVAL_S:
            printed = time.monotonic()
            console.print(text, highlight=False)

    return show
