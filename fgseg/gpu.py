"""How much of a GPU this process may use, where several trials share one."""

import torch

RESIDENT_PART = 0.5
"""Largest part of a trial's memory that frames may take; the model and its activations need the rest."""


def take_share(fraction: float) -> None:
    """Let this process use at most a part of the current GPU's memory; without a GPU nothing happens.

    Beyond it an allocation fails in this process alone, instead of in whichever trial on the card comes next.

    Args:
        fraction: in (0, 1], such as 0.25 where four trials share a card; more than 1 GPU counts as 1.

    Raises:
        ValueError: the fraction is not above 0.
    """
    if fraction <= 0:
        raise ValueError(f"gpu share: got {fraction}, must be above 0; 0.25 lets four trials share a card")
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(fraction, 1.0))


def usable_bytes(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take: of its share and of what is free on the card, the smaller."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return remaining(free, total, share, torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device))


def reset_peak(device: torch.device) -> None:
    """Count the peak of a GPU's memory from now on; on the CPU nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Most memory that this process took from a GPU since the count began, in GiB; None on the CPU.

    What the allocator holds counts, not what tensors fill: so much other processes could not have.
    """
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


def remaining(free: int, total: int, share: float, allocated: int, reserved: int) -> int:
    """Bytes that a process may still take.

    Args:
        free, total: bytes of the card.
        share: part of the card that the process may use, in (0, 1].
        allocated, reserved: bytes that its tensors hold, and that its allocator took from the card for them.

    Returns:
        At least 0.
    """
    unused = reserved - allocated
    return max(0, min(int(share * total) - allocated, free + unused))


def fits(needed: int, usable: int) -> bool:
    """Whether frames of so many bytes may live on a GPU of which so many are usable."""
    return needed <= RESIDENT_PART * usable
