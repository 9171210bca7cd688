"""Goals of the figures that `scripts.bench.gpu` measures."""

from dataclasses import dataclass

from scripts.bench.jobs import EVALUATED

FRAMES, EPOCHS, SEARCH_SIZE = 2000, 3, (256, 512)
"""Training frames, epochs and frame size of the trials of the search."""


@dataclass(frozen=True)
class Target:
    """A figure and its goal."""

    what: str
    figure: str
    goal: float
    unit: str
    at_least: bool = True
    """Whether the figure must be at least the goal, else at most."""

    def row(self, figures: dict[str, float]) -> str:
        """Format a row of the table."""
        goal = f"{'at least' if self.at_least else 'at most'} {self.goal:g} {self.unit}".strip()
        if self.figure not in figures:
            return f"| {self.what} | {goal} | | not measured |"
        value = figures[self.figure]
        reached = value >= self.goal if self.at_least else value <= self.goal
        return f"| {self.what} | {goal} | {value:.4g} {self.unit} | {'reached' if reached else 'missed'} |"


TARGETS = (
    Target("tests marked gpu that fail", "failed tests", 0, "", at_least=False),
    Target("bas_cp training, batch of 2, to the source's", "batch of 2: ratio", 8, "x"),
    Target("bas_cp training, batch of 8, to the source's", "batch of 8: ratio", 14, "x"),
    Target("hybrid loss, forward and backward, to the source's", "bas loss: ratio", 10, "x"),
    Target("approach-3 loss, forward and backward, to the source's", "slc loss: ratio", 6, "x"),
    Target(f"evaluation of {EVALUATED} frames", "evaluation", 3, "s", at_least=False),
    Target("start of the second trial of a process", "start of trial 2", 2, "s", at_least=False),
    Target("mIoU of the plain and the fast step, difference", "mIoU: difference", 2, "standard errors", at_least=False),
    Target(f"search: {EPOCHS} epochs of {FRAMES} frames of 256x512", "trials per hour", 200, "trials/h"),
    Target("search: images/s, to those of bare training", "search: to bare training", 0.9, ""),
    Target("driver held up per epoch (scripts.bench.orchestration)", "driver", 5, "ms", at_least=False),
    Target("two CPU cores: hybrid loss, to the source's", "CPU, bas loss: ratio", 2.4, "x"),
    Target("two CPU cores: approach-3 loss, to the source's", "CPU, slc loss: ratio", 2.4, "x"),
    Target("two CPU cores: whole step, to the source's", "CPU, step: ratio", 2, "x"),
)
