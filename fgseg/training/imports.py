"""Import the libraries of a training, which takes seconds, as fast as possible."""

import gc

from fgseg.garbage import collector_off


def import_training() -> None:
    """Import torch, transformers and the trainer with the garbage collector off; later collections skip what they made.

    The imports allocate about a million objects that are never freed, and the collector would traverse them again and
    again: 10.0 instead of 7.2 s of CPU time for `fgseg.train` with one small epoch on two cores of an AMD EPYC.
    """
    with collector_off():
        import fgseg.training.trainer  # noqa: F401

        gc.freeze()
