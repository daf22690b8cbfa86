"""Every vector against the sans-I/O core, its input whole, byte by byte and at random splits."""

from __future__ import annotations

import pytest

from . import vectors
from .core_bus import CoreBus
from .runner import Replay


@pytest.mark.parametrize("how", vectors.SPLITS)
@pytest.mark.parametrize("case", vectors.load(), ids=str)
def test_core_does_what_the_vector_says(case: vectors.Case, how: str) -> None:
    Replay(case, CoreBus(), how).run()
