"""Draw every picture of README.md: python -m scripts.draw_readme

Runs two small searches with the settings of the quickstart, on procedural scenes, then photographs MLflow's comparison
of the two families and the report in a headless Chromium.  Takes three to ten minutes on two idle cores.
"""

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from scripts.browser import Pages, open_pages
from scripts.draw_streets import draw_streets
from search.study.location import PAGE
from search.tracking.client import load_client

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github"
"""Folder of the pictures."""
TRIALS = {"baseline": 4, "bas_cp": 8}
"""Trials of each family, in the order of the searches: the report of the second one shows the first one."""
WIDTH_PX = 1440
"""Width of the browser's window in CSS pixels."""
MARGIN_PX = 20
"""Margin of a picture in CSS pixels."""
SCALE = 1.5
"""Pixels of a picture per CSS pixel."""
COLOURS = 256
"""Colours of a picture, chosen so that small areas keep theirs; with all colours the file has three times the size."""


def draw_mlflow(pages: Pages, storage: Path) -> Image.Image:
    """Photograph MLflow's comparison of the trials of both families, without menu and assistant."""
    client = load_client()(tracking_uri=pages.base)
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    finished = "tags.`fgseg.kind` = 'trial' AND attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment], finished)
    ids = [run.info.run_id for run in sorted(runs, key=lambda run: run.info.run_name.partition("/")[2])]
    pages.open(f"compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}")
    if not pages.shows(f"Comparing {len(ids)} Runs", *(f"{name}/000" for name in TRIALS)):
        raise TimeoutError("MLflow does not show the comparison")
    pages.click("[data-component-id='mlflow.assistant.chat_panel.close']")
    parameters = pages.browser.find_element("css selector", ".du-bois-light-select input")
    parameters.send_keys("loss.ssim\n")  # the axis that tells the families apart
    parameters.send_keys("\ue00c")  # Escape closes the list
    plot = "document.querySelector('.js-plotly-plot')?.data?.[0]"  # absent until the page has drawn it
    axes = f"return ({plot}?.dimensions ?? []).map(axis => axis.label)"
    pages.until(lambda: "loss.ssim" in pages.browser.execute_script(axes))
    heading = "return [...document.querySelectorAll('h1, h2')].find(e => e.innerText.startsWith('Comparing'))"
    left = pages.browser.execute_script(f"document.activeElement.blur(); {heading}.getBoundingClientRect().left")
    left -= MARGIN_PX
    return photograph(pages, left, WIDTH_PX - left, 800)


def draw_report(pages: Pages, storage: Path) -> Image.Image:
    """Photograph the report of the second family down to its first frame, without most of its tables."""
    pages.browser.get((storage / "quickstart-bas_cp" / "report" / PAGE).as_uri())
    pages.browser.execute_script("document.querySelectorAll('.pair > * + *').forEach(table => table.remove())")
    edges = "const {left, right, bottom} = document.querySelector('.frame').getBoundingClientRect();"
    left, right, bottom = pages.browser.execute_script(f"{edges} return [left, right, bottom]")
    return photograph(pages, left - MARGIN_PX, right - left + 2 * MARGIN_PX, bottom + MARGIN_PX)


PICTURES: dict[str, Callable[[Pages, Path], Image.Image]] = {
    "streets.png": lambda pages, storage: draw_streets(),
    "mlflow.png": draw_mlflow,
    "report.png": draw_report,
}
"""Draws each picture from the pages of MLflow and the storage of the searches."""


def photograph(pages: Pages, left: float, width: float, height: float) -> Image.Image:
    """Take a picture of the upper part of a page.

    Args:
        pages: showing the page.
        left, width, height: of the part, in CSS pixels.
    """
    clip = {"x": left, "y": 0, "width": width, "height": height, "scale": 1}
    options = {"format": "png", "clip": clip, "captureBeyondViewport": True}
    shot = pages.browser.execute_cdp_cmd("Page.captureScreenshot", options)
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def search_families(storage: Path) -> None:
    """Search both families; continues searches that the storage has.  Raises CalledProcessError if one fails."""
    for space, trials in TRIALS.items():
        command = [sys.executable, "-m", "search.run", "--space", space, "--trials", str(trials)]
        subprocess.run([*command, "--storage", str(storage)], cwd=ROOT, check=True)


def draw_pictures(storage: Path) -> None:
    """Search both families in a storage, and write all pictures."""
    search_families(storage)
    with open_pages(f"sqlite:///{storage / 'mlflow.db'}", storage, WIDTH_PX, 1000, SCALE) as pages:
        for name, draw in PICTURES.items():
            reduced = draw(pages, storage).quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2)
            reduced.save(FOLDER / name, optimize=True)
            print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Read the command line and draw the pictures."""
    parser = argparse.ArgumentParser(prog="python -m scripts.draw_readme", description=__doc__)
    parser.add_argument("--storage", type=Path, metavar="DIR", help="folder of the searches (default: a temporary one)")
    storage = parser.parse_args().storage
    if storage is not None:
        draw_pictures(storage.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder))


if __name__ == "__main__":
    main()
