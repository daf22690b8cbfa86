"""What only a test can raise."""

from __future__ import annotations


class StuckError(Exception):
    """A wait would be for ever: nobody in the kit has anything left to do, and no deadline is ahead. In the real world this test hangs.

    No BusError, so that the code under test does not take it for trouble with the bus.
    """
