"""The end of a run: the best trial as a finished model, in the study's folder and in MLflow's registry."""

from collections.abc import Callable

from rich.console import Console

from fgseg.config.errors import ConfigError
from fgseg.storage.store import open_store
from search.console.run_summary import study_command
from search.export import export, read_origin
from search.ledger.ledger import Ledger
from search.study.location import REGISTERED, Place, public_address
from search.study.plan import Plan
from search.tracking.client import TrackingError
from search.tracking.model_registry import REGISTER_S, register


def finish(plan: Plan, ledger: Ledger, console: Console, stop: Callable[[], bool]) -> None:
    """Export the best trial's model if it is another one than before, and register it; tells what fails, in one line.

    Args:
        plan: of a study with a finished trial.
        ledger: its books.
        console: shows what is waited for.
        stop: asked while MLflow is waited for; that is given up when it says so.
    """
    place = plan.place
    try:
        folder, _ = export(place, ledger)
        if plan.search.register_model:
            with console.status("registering the model in MLflow"):
                register_once(place, folder, stop)
    except (ConfigError, OSError, ValueError, TrackingError) as error:
        text = f"warning: the finished model: {error}; to try again: {study_command(plan, 'search.export')}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def register_once(place: Place, folder: str, stop: Callable[[], bool]) -> None:
    """Register the model in a folder, unless a note in it says that this was done; raises TrackingError."""
    note, address = open_store(folder), public_address(place.tracking_uri)
    if REGISTERED in note.list() and note.get(REGISTERED).decode() == address:
        return
    register(place.tracking_uri, read_origin(folder), folder, REGISTER_S, stop)
    note.put(REGISTERED, address.encode())
