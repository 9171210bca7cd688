"""Carries reports from the first process of a trial to its own function.  It imports nothing large: it is a process."""

import asyncio


class Mailbox:
    """A Ray actor: one sends, one receives, and every report is answered before the next one."""

    def __init__(self) -> None:
        self.letters: asyncio.Queue[tuple[str | None, asyncio.Event]] = asyncio.Queue()
        self.noted = asyncio.Event()

    async def send(self, report: str) -> None:
        """Hand over a report; returns when the driver has taken note of it."""
        noted = asyncio.Event()
        await self.letters.put((report, noted))
        await noted.wait()

    async def close(self) -> None:
        """No report will come any more."""
        await self.letters.put((None, asyncio.Event()))

    async def receive(self) -> str | None:
        """The next report, or None at the end; to ask for it says that the driver has taken note of the one before."""
        self.noted.set()
        report, self.noted = await self.letters.get()
        return report
