# PYTHON_ARGCOMPLETE_OK
"""Write the report of a study, as a page, as Markdown and as pictures: `python -m search.report --study NAME`."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgseg.cli import MISTAKE, told
from fgseg.config.errors import ConfigError
from fgseg.storage.store import Store, join
from search.baseline import find_baseline
from search.cli.options import Parser, add_place, place_from
from search.ledger.catalog import open_ledger
from search.ledger.database import LedgerError
from search.study.location import PAGE, Place
from search.summary import summarise

if TYPE_CHECKING:
    from search.report_content import Content

DONE, FAULT = 0, 1
TEXT = "report.md"
LATER = "The pictures of frames come at the end of the run."


def write_report(place: Place, frames: bool = True) -> list[str]:
    """Write the report of a study as its ledger stands into `<study>/report/`.

    Args:
        place: of the study.
        frames: whether to predict frames with the best trial's weights: some seconds, and a model in memory.

    Returns:
        The names of the files.

    Raises:
        ConfigError: there is no such study.
    """
    summary = summarise(open_ledger(place))
    from search.report_content import build_content  # matplotlib takes seconds to import: mistakes come first
    from search.report_frames import Frames, choose_frames

    place.report_store.sweep()
    shown = choose_frames(summary, place.trial_store) if frames else Frames((), LATER)
    files = report_files(build_content(summary, find_baseline(place, summary), shown, time.time()))
    put_all(place.report_store, files)
    return sorted(files)


def report_files(content: "Content") -> dict[str, bytes]:
    """Every file of a report by its name."""
    from fgseg.visual.label_images import encode_png, strip
    from search.report_html import page
    from search.report_text import markdown

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 the ledger fails, 2 the user's mistake."""
    try:
        return run(parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE


def run(options: argparse.Namespace) -> int:
    """Do what the options say; raises ConfigError."""
    place = place_from(options)
    try:
        write_report(place, frames=not options.no_frames)
        best = summarise(open_ledger(place)).best
    except (LedgerError, OSError) as error:
        print(f"error: {told(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return FAULT
    if best is None:
        print(f"study {place.study}: no trial has finished yet")
    print(f"report: {join(place.folder, 'report', PAGE)}")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.report", description=__doc__)
    add_place(parser)
    parser.add_argument("--no-frames", action="store_true", help="leave out the pictures of validation frames")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
