"""The deliberate faults can still be planted, and are caught: a few here, all with ``python -m tests.sim.mutants``."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mutants import by_name, caught_by, mutated, source_of
from .mutation import Mutation
from .mutations import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_can_be_planted(mutation: Mutation) -> None:
    changed = mutated(mutation, source_of(mutation))
    compile(changed, mutation.module, "exec")
    missing = [path for path in mutation.unit if not Path(path).exists()]
    assert not missing


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 25


@pytest.mark.parametrize("name", ["lost_cancel", "skipped_replay", "silent_loss"])
def test_a_few_are_caught(name: str) -> None:
    catcher = caught_by(by_name(name), seeds=40)
    assert catcher is not None
    assert catcher.startswith("seed ")


def test_one_that_does_not_fit_the_code_any_more_is_an_error() -> None:
    with pytest.raises(ValueError, match="stands 0 times"):
        mutated(by_name("lost_cancel"), "the code as it is now")
    with pytest.raises(KeyError, match="no fault 'lost_cancle'"):
        by_name("lost_cancle")
