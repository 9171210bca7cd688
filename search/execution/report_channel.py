"""Pass the reports of a trial of several processes from rank 0 to the trial's own process.

A module of its own, since its process imports nothing else, and starts seconds earlier.
"""

import asyncio


class ReportChannel:
    """Ray actor that passes reports from rank 0 to the trial's own process, one at a time.

    One process calls `send` and `close`, another one `receive`.
    """

    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[str | None, asyncio.Event]] = asyncio.Queue()
        self.acknowledged = asyncio.Event()

    async def send(self, report: str) -> None:
        """Send a report; returns once `receive` has been called for the next one."""
        acknowledged = asyncio.Event()
        await self.reports.put((report, acknowledged))
        await acknowledged.wait()

    async def close(self) -> None:
        """End the channel: `receive` returns None after the reports already sent."""
        await self.reports.put((None, asyncio.Event()))

    async def receive(self) -> str | None:
        """Return the next report, or None after `close`.  Calling it acknowledges the previous report."""
        self.acknowledged.set()
        report, self.acknowledged = await self.reports.get()
        return report
