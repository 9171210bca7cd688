"""Write the report of a study into its folder: page, Markdown and pictures."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgseg.config.errors import ConfigError, one_line
from fgseg.config.loading import Layer, build
from fgseg.config.settings import ModelConfig, with_defaults
from fgseg.storage.store import Store
from search.ledger.catalog import open_ledger
from search.ledger.records import TrialRecord, count_ended
from search.ledger.untrained import untrained_of
from search.report.summary import find_baseline, summarise
from search.study.location import PAGE, StudyLocation
from search.study.plan import REPEATS

if TYPE_CHECKING:
    from search.report.content import Content

MARKDOWN = "report.md"
FRAMES_LATER = "The pictures of frames come at the end of the run."


def write_report(location: StudyLocation, frames: bool = True) -> list[str]:
    """Write the report of a study, from its ledger, into `<study>/report/`.

    Args:
        location: of the study.
        frames: whether to predict frames with the best trial's weights, which takes seconds and a model's memory.

    Returns:
        The names of the files.

    Raises:
        ConfigError: there is no such study.
    """
    summary = summarise(open_ledger(location), location)
    from search.report.content import build_content  # after ConfigError was possible: matplotlib imports in seconds
    from search.report.frames import Frames, choose_frames

    location.report_store.remove_temporary()
    shown = choose_frames(summary, location.trial_store) if frames else Frames((), FRAMES_LATER)
    files = report_files(build_content(summary, find_baseline(location, summary), shown, time.time()))
    store_files(location.report_store, files)
    return sorted(files)


def complete_untrained(location: StudyLocation) -> str:
    """Evaluate the untrained checkpoint of a study whose folder lacks the result; does nothing for other studies.

    Returns:
        Empty, or in one line why it cannot be evaluated.
    """
    metadata = open_ledger(location).metadata
    settings = with_defaults(metadata.settings)
    model = ModelConfig(name=settings["model.name"], head=settings["model.head"])
    if untrained_of(location, metadata) or not model.is_checkpoint:
        return ""
    from fgseg.training.untrained import evaluate_untrained_once  # imports torch

    try:
        run = build([Layer(f"study {location.study}", settings)])
        evaluate_untrained_once(run, location.folder, "test" if location.study.endswith(REPEATS) else "val")
    except (ConfigError, RuntimeError) as error:  # RuntimeError: the GPU is full of trials
        return f"the untrained checkpoint cannot be evaluated: {one_line(error, first_line=True)}"
    return ""


def report_files(content: "Content") -> dict[str, bytes]:
    """Render a report; returns its files' bytes by name."""
    from fgseg.visual.label_images import encode_png, strip
    from search.report.html import render_page
    from search.report.markdown import render_markdown

    files = {PAGE: render_page(content).encode(), MARKDOWN: render_markdown(content).encode()}
    files |= {f"{chart.name}.png": chart.png for chart in content.charts}
    strips = (encode_png(strip(list(frame.panels().values()))) for frame in content.frames.shown)
    return files | {f"frame-{k}.png": picture for k, picture in enumerate(strips, 1)}


def is_current(store: Store, records: Sequence[TrialRecord], best: TrialRecord | None) -> bool:
    """Return whether a store has a page of the end of a run, after all ended trials and of this best trial."""
    page = store.get(PAGE).decode()
    shown = {"ended-trials": count_ended(records), "best-trial": "" if best is None else best.number}
    return FRAMES_LATER not in page and all(f'name="{key}" content="{value}"' in page for key, value in shown.items())


def store_files(store: Store, files: dict[str, bytes]) -> None:
    """Write the files, the page last, and delete the pictures of an earlier report that are not among them."""
    for name in sorted(files, key=lambda name: name == PAGE):  # so that a page is never newer than another file
        store.put(name, files[name])
    for name in store.list():
        if name.endswith(".png") and name not in files:
            store.delete(name)
