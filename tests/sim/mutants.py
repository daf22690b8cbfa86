"""``python -m tests.sim.mutants [--list] [NAME …]``: plants deliberate faults one at a time, and shows that the tests catch them.

Each fault gets a process of its own, in which the source of one module is changed while it is imported. There the simulation plays seeds
until one fails; where none does, the unit tests that the fault names are run. Exit code 1 when a fault survives, 2 when one cannot be
planted any more.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import CodeType, ModuleType

from .mutation import Mutation
from .mutations import MUTATIONS

SEEDS = 400  #: a fault that so many do not show is for a unit test
PATIENCE_S = 300.0  #: a fault may well make something endless


def by_name(name: str) -> Mutation:
    """The fault of this name; KeyError names those that there are."""
    try:
        return next(mutation for mutation in MUTATIONS if mutation.name == name)
    except StopIteration:
        raise KeyError(f"no fault {name!r}: {', '.join(mutation.name for mutation in MUTATIONS)}") from None


def mutated(mutation: Mutation, source: str) -> str:
    """*source* with the fault in it. Raises ValueError where it cannot be planted any more."""
    found = source.count(mutation.old)
    if found != 1:
        raise ValueError(f"{mutation.name}: its text stands {found} times in {mutation.module}, not once: follow the code in mutations.py")
    return source.replace(mutation.old, mutation.new)


def source_of(mutation: Mutation) -> str:
    """The source of the module that the fault is planted in."""
    spec = importlib.util.find_spec(mutation.module)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return file.read()


# --- in the process of one fault ----------------------------------------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module with a fault in it; never from or into a cache of bytecode."""

    mutation: Mutation

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        code: CodeType = compile(mutated(self.mutation, source), self.path, "exec", dont_inherit=True)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self.planted = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.mutation.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.mutation = self.mutation
        self.planted = True
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def _try_one(mutation: Mutation, seeds: int) -> int:
    """Plant the fault and look for it; 0 where it was caught. The last line says by what."""
    assert mutation.module not in sys.modules, "too late"
    finder = _Finder(mutation)
    sys.meta_path.insert(0, finder)
    from .story import play

    played = finder.planted  # what no story needs is for the unit tests
    importlib.import_module(mutation.module)
    assert finder.planted
    for seed in range(seeds) if played else ():
        try:
            play(seed)
        except Exception as error:  # noqa: BLE001  # whatever it breaks
            words = str(error).partition("\n")[0]
            print(f"seed {seed}: {type(error).__name__}: {words[:150]}")  # noqa: T201
            return 0
    if mutation.unit:
        import pytest

        # in this process: another one has not the fault
        if pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *mutation.unit]) == pytest.ExitCode.TESTS_FAILED:
            print(", ".join(mutation.unit))  # noqa: T201
            return 0
    print("SURVIVED")  # noqa: T201
    return 1


# --- the table ----------------------------------------------------------------------------------------------------------------------------


def caught_by(mutation: Mutation, seeds: int = SEEDS) -> str | None:
    """What catches the fault, or None where it survives."""
    command = [sys.executable, "-m", "tests.sim.mutants", "--seeds", str(seeds), "--here", mutation.name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    except subprocess.TimeoutExpired:
        return f"it never ends ({PATIENCE_S:g} s)"
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{mutation.name} could not be tried:\n{done.stdout}{done.stderr}")
    return done.stdout.splitlines()[-1] if done.returncode == 0 else None


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these faults")
    parser.add_argument("--list", action="store_true", help="say which faults there are, and plant none")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="stories to play with each")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    chosen = [by_name(name) for name in options.names] or MUTATIONS
    if options.here:
        return _try_one(chosen[0], options.seeds)
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name:22} {mutation.module:30} {mutation.about}")  # noqa: T201
        return 0
    try:
        for mutation in chosen:
            mutated(mutation, source_of(mutation))
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, catcher in zip(chosen, pool.map(lambda mutation: caught_by(mutation, options.seeds), chosen), strict=True):
            survivors += catcher is None
            print(f"{mutation.name:22} {mutation.about}\n{'':22} {catcher or 'SURVIVED'}", flush=True)  # noqa: T201
    print(f"{len(chosen) - survivors} of {len(chosen)} faults were caught")  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
