"""A made-up recording of few points: a hill over two settings whose ranks differ at the first epoch."""

import numpy as np

from scripts.replay.recording import Recording
from search.study.space import Range

RANGES = {
    "loss.ssim": Range(low=0.1, high=10.0, log=True, start=1.0),
    "copy_paste.prob": Range(low=0.0, high=1.0, start=0.5),
}
HEADER = {
    "space": {"name": "hill", "search": {name: r.model_dump() for name, r in RANGES.items()}},
    "settings": {},
    "foreground": [["pole", 1], ["sign", 2]],
    "versions": {},
}
POINTS = [(1.0, 0.5), *((10.0**ssim, prob) for ssim in (-0.8, 0.0, 0.8) for prob in (0.1, 0.4, 0.9)), (1.0, 0.5)]
"""The start point, nine points, and the start point with another seed."""
SEEDS = [*range(10), 1]


def small_recording() -> Recording:
    """Eleven rows of four epochs, two frames of three classes; the best point is (1.0, 0.4)."""
    points = np.array(POINTS)
    value = 0.6 - 0.1 * np.abs(np.log10(points[:, 0])) - 0.3 * np.abs(points[:, 1] - 0.4)
    value[10] += 0.02
    share = np.array([0.5, 0.8, 0.9, 1.0])
    miou = value[:, None] * share
    miou[:, 0] = miou[::-1, 0]
    truth = np.array([[50, 10, 0], [40, 10, 10]], np.int32)
    predicted = np.broadcast_to(truth, (11, 4, 2, 3)).copy()
    return Recording(
        HEADER,
        params=points,
        seeds=np.array(SEEDS),
        seconds=np.ones((11, 4), np.float32),
        miou=miou,
        truth=truth,
        predicted=predicted,
        hits=(predicted * miou[:, :, None, None]).astype(np.int32),
    )
