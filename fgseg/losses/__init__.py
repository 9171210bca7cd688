"""The hybrid loss: a weighted sum of terms, each a pure function in its own file."""

from fgseg.losses.hybrid import TERMS, HybridLoss

__all__ = ["TERMS", "HybridLoss"]
