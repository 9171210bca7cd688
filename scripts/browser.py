"""Pages of an MLflow server, and of files, in a headless Chromium: for the browser test and the README's pictures.

Needs Chromium, its driver and selenium, which come with the tests' dependencies and Debian's package chromium-driver.
"""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
"""Paths of Chromium and of its driver; None where they are not installed."""


@dataclass(frozen=True)
class Pages:
    """The pages of one server in one browser."""

    browser: Any
    base: str
    """Address of the server."""

    @property
    def text(self) -> str:
        """The text of the page."""
        return str(self.browser.execute_script("return document.body.innerText"))

    def open(self, path: str) -> None:
        """Load a page anew: MLflow 3.17 may stop with "Something went wrong" where only the address's fragment changes
        from one run's artifacts to another's."""
        self.browser.get("about:blank")
        self.browser.get(f"{self.base}/#/{path}{'&' if '?' in path else '?'}workflowType=machine_learning")

    def until(self, holds: Callable[[], Any], limit_s: float = 300) -> Any:
        """Wait until a condition holds; returns its last value, which is false after `limit_s` seconds."""
        end = time.monotonic() + limit_s
        while not (found := holds()) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def shows(self, *texts: str) -> bool:
        """Wait until the page has all these texts; returns False after 300 s."""
        return bool(self.until(lambda: all(text in self.text for text in texts)))

    def click(self, selector: str, at: int = 0) -> None:
        """Click the element with this number among those of a CSS selector, once it is there."""
        find = "return document.querySelectorAll(arguments[0])[arguments[1]]"
        element = self.until(lambda: self.browser.execute_script(find, selector, at))
        self.browser.execute_script("arguments[0].click()", element)


@contextmanager
def open_browser(width: int, height: int, scale: float = 1) -> Iterator[Any]:
    """Start a headless Chromium; yields its driver of Selenium.

    Args:
        width, height: of the page in CSS pixels.
        scale: pixels of a screenshot per CSS pixel.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(option)
    options.add_argument(f"--window-size={width},{height}")
    options.add_argument(f"--force-device-scale-factor={scale:g}")
    options.binary_location = str(BROWSER)
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    browser.set_script_timeout(300)
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def open_pages(uri: str, folder: Path, width: int, height: int, scale: float = 1) -> Iterator[Pages]:
    """Run an MLflow server on a free port of 127.0.0.1, and a browser.

    Args:
        uri: address of the database.
        folder: receives `server.log`.
        width, height, scale: see `open_browser`.

    Raises:
        TimeoutError: the server has not answered within five minutes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with open_browser(width, height, scale) as browser:
            pages = Pages(browser, f"http://127.0.0.1:{port}")
            if not pages.until(lambda: is_healthy(pages.base)):
                raise TimeoutError(f"the MLflow server does not answer:\n{(folder / 'server.log').read_text()}")
            yield pages
    finally:
        server.terminate()
        server.wait(120)


def is_healthy(base: str) -> bool:
    """Return whether a server answers."""
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False
