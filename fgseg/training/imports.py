"""Import the libraries of a training, which takes seconds, as fast as possible."""

import gc
from functools import cache

from fgseg.garbage import collector_off


@cache  # freezing again would keep the last trial's model, which waits for a collection, for good
def import_training() -> None:
    """Import torch, transformers and the trainer with the garbage collector off; later collections skip what they made.

    Does nothing after the first call in a process.

    The imports allocate about a million objects that are never freed, and the collector would traverse them again and
    again: 10.0 instead of 7.2 s of CPU time for `fgseg.train` with one small epoch on two cores of an AMD EPYC.
    """
    with collector_off():
        import fgseg.training.epoch  # noqa: F401

        gc.freeze()
