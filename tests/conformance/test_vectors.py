"""The vector files themselves: every step has a form that PROTOCOL.md section 11 knows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from ipcbus.protocol.errors import Code

from . import vectors

#: The keys of a step; those with a question mark may be missing.
FORMS = [
    {"connect", "transport"},
    {"ready"},
    {"peer", "in", "note?", "times?"},
    {"prove", "with?"},
    {"peer", "out"},
    {"peer", "lanes"},
    {"closed", "code"},
    {"eof"},
    {"close"},
    {"advance_s"},
    {"policy"},
]
PROOF_PARTS = {"role", "hello", "version", "features", "nonce", "bus_address", "client_address", "secret"}


def _has_form(step: dict[str, Any], form: set[str]) -> bool:
    needed = {key for key in form if not key.endswith("?")}
    return needed <= set(step) <= {key.rstrip("?") for key in form}


@pytest.mark.parametrize("path", sorted(vectors.DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_is_a_group_of_cases_with_names_of_their_own(path: Any) -> None:
    content = json.loads(path.read_text())
    assert set(content) == {"group", "about", "cases"}
    assert content["group"] == path.stem
    names = Counter(case["name"] for case in content["cases"])
    assert max(names.values()) == 1, names.most_common(3)


@pytest.mark.parametrize("case", vectors.load(), ids=str)
def test_steps_have_a_known_form(case: vectors.Case) -> None:
    assert case.clauses
    connected: set[str] = set()
    for step in case.steps:
        assert sum(_has_form(step, form) for form in FORMS) == 1, step
        peer = next((step[key] for key in ("peer", "prove", "closed", "eof", "close") if key in step), None)
        assert peer is None or peer in connected, f"not connected: {step}"
        connected |= {step[key] for key in ("connect", "ready") if key in step}
        if "closed" in step:
            assert step["code"] is None or (code := Code[step["code"].upper()]).fatal or code is Code.DENIED
        if "in" in step:
            assert vectors.to_bytes(step["in"])
        assert set(step.get("with", {})) <= PROOF_PARTS
        assert step.get("transport", "unix") in ("unix", "tcp")


@pytest.mark.parametrize("how", vectors.SPLITS)
@pytest.mark.parametrize("size", [0, 1, 2, 5, 100, 10_000])
def test_splitting_loses_nothing(size: int, how: str) -> None:
    data = bytes(index % 251 for index in range(size))
    pieces = [*vectors.split(data, how, "seed")]
    assert b"".join(pieces) == data
    assert all(pieces)
    assert pieces == [*vectors.split(data, how, "seed")]
    if how == "bytes":
        assert {len(piece) for piece in pieces[:2000] + pieces[-2000:]} <= {1}
