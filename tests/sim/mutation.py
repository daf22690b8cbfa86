"""What a deliberate fault is. `mutations.py` has them all, `mutants.py` plants them, one at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A small change of the source of one module.

    *old* must stand exactly once in it: a change of the code that a fault is planted in has to be followed here. It is caught by the
    simulation, or, where it can only be seen from inside or by a clock, by the unit tests that are named.
    """

    name: str
    about: str
    module: str
    old: str
    new: str
    unit: tuple[str, ...] = ()  #: tests to run where no story shows it
