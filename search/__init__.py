"""Search hyperparameters of street segmentation: trials of `fgseg`, on Ray, recorded in a ledger."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import SearchStoppedError, Study, compare_families, open_study, run_search

__all__ = ["SearchStoppedError", "Study", "compare_families", "open_study", "run_search"]


def __getattr__(name: str) -> Any:
    """Import the names of `search.api` at their first use: commands that find a mistake early do not need it."""
    if name in __all__:
        from search import api

        return getattr(api, name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
