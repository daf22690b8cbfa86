"""``pytest tests/sim --seeds 5000`` for a long run, ``--seed 17`` to see one again."""

from __future__ import annotations

from collections.abc import Generator

import pytest

SEEDS = 100  #: of an ordinary run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=SEEDS, help="tests/sim: run the seeds 0 … N − 1")
    parser.addoption("--seed", type=int, default=None, help="tests/sim: run this seed only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        # a plain `pytest` reads this file too late for its options, then the defaults hold
        one = metafunc.config.getoption("--seed", None)
        count = metafunc.config.getoption("--seeds", SEEDS)
        metafunc.parametrize("seed", range(count) if one is None else [one])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    seed = item.callspec.params.get("seed") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    if report.failed and seed is not None:
        report.sections.append(("again", f"python -m pytest tests/sim --seed {seed}"))
    return report
