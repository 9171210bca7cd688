"""Write the report of a study: page, text and charts, into its folder."""

import time
from typing import TYPE_CHECKING

from fgseg.storage.store import Store
from search.ledger.catalog import open_ledger
from search.report.summary import find_baseline, summarise
from search.study.location import PAGE, StudyLocation

if TYPE_CHECKING:
    from search.report.content import Content

TEXT = "report.md"


LATER = "The pictures of frames come at the end of the run."


def write_report(location: StudyLocation, frames: bool = True) -> list[str]:
    """Write the report of a study as its ledger stands into `<study>/report/`.

    Args:
        place: of the study.
        frames: whether to predict frames with the best trial's weights: some seconds, and a model in memory.

    Returns:
        The names of the files.

    Raises:
        ConfigError: there is no such study.
    """
    summary = summarise(open_ledger(location))
    from search.report.content import build_content  # matplotlib takes seconds to import: mistakes come first
    from search.report.frames import Frames, choose_frames

    location.report_store.remove_temporary()
    shown = choose_frames(summary, location.trial_store) if frames else Frames((), LATER)
    files = report_files(build_content(summary, find_baseline(location, summary), shown, time.time()))
    put_all(location.report_store, files)
    return sorted(files)


def report_files(content: "Content") -> dict[str, bytes]:
    """Every file of a report by its name."""
    from fgseg.visual.label_images import encode_png, strip
    from search.report.html import page
    from search.report.tables import markdown

    files = {PAGE: page(content).encode(), TEXT: markdown(content).encode()}
    files |= {f"{chart.name}.png": chart.png for chart in content.charts}
    strips = (encode_png(strip(list(frame.panels().values()))) for frame in content.frames.shown)
    return files | {f"frame-{k}.png": picture for k, picture in enumerate(strips, 1)}


def put_all(store: Store, files: dict[str, bytes]) -> None:
    """Write the files, and delete pictures of an earlier report that this one has not."""
    for name, data in files.items():
        store.put(name, data)
    for name in store.list():
        if name.endswith(".png") and name not in files:
            store.delete(name)
