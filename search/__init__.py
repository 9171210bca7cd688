"""Search the hyperparameters of street-view segmentation: many trials of `fgseg`, on Ray, in one ledger."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import SearchStoppedError, Study, compare_families, open_study, run_search

__all__ = ["SearchStoppedError", "Study", "compare_families", "open_study", "run_search"]


def __getattr__(name: str) -> Any:
    """The names of `search.api`, imported when they are first asked for: the commands answer mistakes without it."""
    if name in __all__:
        from search import api

        return getattr(api, name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
