"""The pictures that a trial leaves in its folder, by name.  Needs no torch."""

import re

from fgseg.storage.store import Store

NAME = re.compile(r"overlay-\d+-(.+\.png)")
UNSAFE = re.compile(r"[^\w.-]+")


def overlay_name(number: int, frame: str) -> str:
    """The name of a file: a number, and the frame's name as far as a file can have it."""
    return f"overlay-{number}-{UNSAFE.sub('_', frame)}.png"


def read_overlays(store: Store) -> dict[str, bytes]:
    """The pictures of a trial's folder by the name of their frame; empty where there are none."""
    return {match[1]: store.get(name) for name in store.list() if (match := NAME.fullmatch(name))}


def is_whole(png: bytes) -> bool:
    """Whether a PNG file begins and ends as one."""
    return png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
