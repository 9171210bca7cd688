"""Import the libraries of a training, which takes seconds, as fast as possible."""

import gc


def import_training() -> None:
    """Import torch, transformers and the trainer with the garbage collector off; later collections skip what they made.

    The imports allocate about a million objects that are never freed, and the collector would traverse them again and
    again: 11 instead of 9 s of CPU time, and 0.25 s for each full collection afterwards.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        import fgseg.training.trainer  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
