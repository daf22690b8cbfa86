"""What is written twice says the same: PROTOCOL.md's tables and the enums, clauses and who cites them. And what must not be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ipcbus.broker import introductions
from ipcbus.protocol import limits
from ipcbus.protocol.connection import ALLOWED, FEATURES
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import LAYOUTS, WITH_PAYLOAD, Kind, decode, encode

from .harness import Bus

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "ipcbus" / "PROTOCOL.md").read_text()

_CLAUSE = re.compile(r"\b[FVKTHLNRWIBES]-\d+\b")
_DEFINITION = re.compile(r"^(?:- |\| )\*\*([A-Z]-\d+)(?: \[later\])?\*\*", re.MULTILINE)
_SKIPPED = {".git", ".venv", "build", "dist", "__pycache__"}
_TEXTS = {".py", ".md", ".json", ".toml", ".service", ".socket", ".conf", ".yml", ".cfg", ".txt", ""}


@cache
def texts() -> dict[str, str]:
    """Every text file of the project by its path."""
    found = {}
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        hidden = any(part in _SKIPPED or part.endswith(("_cache", ".egg-info")) for part in relative.parts)
        if not hidden and path.is_file() and path.suffix in _TEXTS:
            found[str(relative)] = path.read_text()
    return found


def rows(text: str, start: str) -> Iterator[list[str]]:
    """The cells of the table whose header begins with *start*."""
    lines = text[text.index(start) :].splitlines()
    for line in map(str.strip, lines[2:]):
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_error_table_is_the_enum() -> None:
    table = {int(number): (name.strip("`"), fatal == "yes") for number, name, fatal, _ in rows(PROTOCOL, "| code | name | fatal |")}
    assert table == {code.value: (code.label, code.fatal) for code in Code}


def test_the_kind_table_is_the_enum() -> None:
    table = {int(number): name.split(" **")[0] for number, name, _, _ in rows(PROTOCOL, "| kind | name | who |")}
    assert table == {kind.value: kind.name for kind in Kind}


@pytest.mark.parametrize("row", [*rows(PROTOCOL, "| kind | name | who |")], ids=lambda row: row[1])
def test_the_elements_of_a_kind_are_its_layout(row: list[str]) -> None:
    kind = Kind(int(row[0]))
    elements = row[3].strip("`[]").split(", ")
    assert elements[0] == row[0]
    written = ["sender" if element == "0" else "to" if element == "topic" else element for element in elements[1:]]
    assert written == [name for name, _ in LAYOUTS[kind]] + ["payload"] * (kind in WITH_PAYLOAD)


def test_who_may_send_which_kind_is_the_table_of_states() -> None:
    clients = {int(number) for number, _, who, _ in rows(PROTOCOL, "| kind | name | who |") if "C" in who}
    assert clients == {kind.value for kinds in ALLOWED.values() for kind in kinds}
    states = {state.strip("`").split("`")[0]: text for state, text, _ in rows(PROTOCOL, "| state | a client may send |")}
    for state, kinds in ALLOWED.items():
        assert {kind.name for kind in kinds} == set(re.findall(r"\b[A-Z]{3,}\b", states[state.value])), state


#: Where PROTOCOL.md says the default of a limit, in italics. max_route_cache is no client's concern.
_LIMITS = {
    "max_frame_bytes": "F-3", "max_lanes": "L-1", "max_names": "N-1", "max_requests": "R-2", "max_callee_requests": "R-2",
    "max_timeout_ms": "R-1", "max_credit_bytes": "L-5", "lane_policy": "L-7", "lane_soft_bytes": "L-7", "lane_hard_bytes": "L-7",
    "lane_stall_s": "L-7", "stall_window_s": "L-12", "max_parked_bytes": "L-12", "max_retained_topics": "L-8",
    "max_retained_bytes": "L-8", "max_wills": "W-1", "max_will_bytes": "W-1", "max_bound": "W-2", "handshake_timeout_s": "H-9",
    "half_close_linger_s": "H-11", "max_matches": "L-1", "quota_grace_s": "Q-3",
    **{f"max_{level}_lanes": "| `lanes` | subscriptions" for level in ("program", "user", "bus")},
    **{f"max_{level}_names": "| `names` | names" for level in ("program", "user", "bus")},
    **{f"max_{level}_requests": "| `requests` | requests" for level in ("program", "user", "bus")},
    **{f"max_{level}_bytes": "| `bytes` | what" for level in ("program", "user")}, "max_queued_bytes": "| `bytes` | what",
    **{f"max_{level}_peers": "| `peers` | connections" for level in ("program", "user")}, "max_peers": "| `peers` | connections",
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((getattr(Limits(), name), clause) for name, clause in _LIMITS.items()),
        (limits.MAX_INTRODUCED, "I-3"),
        (limits.IDENTITY_GROUPS, "I-2"),
        (introductions._DEPARTED_MAX, "I-4"),
        (Limits().max_methods, "| `serve` |"),
        (Limits().max_topic_counters, "| `topics` |"),
        (Limits().max_output_bytes, "| `slow_reader` |"),
        (limits.PAGE_ITEMS, "B-2"),
    ],
)
def test_the_numbers_in_italics_are_the_defaults(value: float | str, text: str) -> None:
    lines = clause(text) if text[0] != "|" else next(line for line in PROTOCOL.splitlines() if text in line)
    ways = [value] if isinstance(value, str) else [str(value), f"{value:,}".replace(",", " "), f"{value:g} s", f"{value / 2**20:g} MiB"]
    assert any(f"*{way}*" in lines for way in ways), (ways, lines)


def test_what_welcome_says_is_listed() -> None:
    bus = Bus()
    peer = bus.broker.connect(bus.now)
    bus.broker.receive(peer, encode(Kind.HELLO, 0, 1, 1, [], {}, None), bus.now)
    assert names_in(clause("H-8")) == ["info", *decode(bytes(peer.out[0])).elements[6]]


def test_the_features_that_are_offered_are_listed() -> None:
    offered, later = clause("H-3").split("Fixed for later")
    assert names_in(offered) == ["post", "get", "restore", "wills", "parts", "hold", "identity"]
    assert set(FEATURES) == {"post", "wills", "parts", "hold", "identity"}
    assert not {*FEATURES} & {*names_in(later)}


def test_what_the_bus_counts_is_listed() -> None:
    listed = clause("B-4").split("Counters count")[0]
    assert sorted(names_in(listed)) == sorted(["stats", *Bus().peer().ask("stats")])


def test_the_methods_of_the_bus_and_their_arguments_are_listed() -> None:
    table = {}
    for methods, arguments, _ in rows(PROTOCOL, "| **B-3** method |"):
        if "[later]" not in methods:
            built = re.sub(r"\([^()]*\)", "", arguments.split("[later]")[0])
            table.update({method: set(names_in(built.replace("?`", "`"))) for method in names_in(methods)})
    assert table == {method: set(about["arguments"]) for method, about in Bus().peer().ask("introspect")["methods"].items()}


def clause(name: str) -> str:
    """The text of one clause."""
    begin = PROTOCOL.index(f"- **{name}**")
    return re.split(r"\n- \*\*|\n\n", PROTOCOL[begin:])[0]


def names_in(text: str) -> list[str]:
    """The plain words in backquotes."""
    return re.findall(r"`([a-z_]+)`", text)


def clauses() -> set[str]:
    """The clauses that PROTOCOL.md defines."""
    found = _DEFINITION.findall(PROTOCOL)
    assert len(found) == len(set(found)), f"defined twice: {sorted(clause for clause in found if found.count(clause) > 1)}"
    return set(found)


def test_every_clause_that_is_cited_exists() -> None:
    unknown = {
        f"{path}:{text[: found.start()].count(chr(10)) + 1}: {found[0]}"
        for path, text in texts().items()
        for found in _CLAUSE.finditer(text)
        if found[0] not in clauses()
    }
    assert not unknown


def test_every_clause_has_a_vector() -> None:
    """S-2 is for clients, E-5 for versions that have not built something; all others show in what the bus does. Shares and the limits of
    accounts show only where several programs use much: tests/unit/test_accounts*.py."""
    cases = [case for path in (ROOT / "tests" / "vectors").glob("*.json") for case in json.loads(path.read_text())["cases"]]
    cited = {clause for case in cases for clause in case["clauses"]}
    assert clauses() - cited == {"E-5", "S-2", "Q-2", "Q-3", "Q-4", "Q-5", "Q-6"}


#: Put together here so that this file does not say what it forbids.
FORBIDDEN = ["/wo" + "rk/", "/tmp/" + "dev", "/ro" + "ot/", "py" + "pi.", "python" + "hosted"]


def test_nothing_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
        for path, text in texts().items()
        for match in re.finditer(rf"(?<![\w.])(?:{'|'.join(map(re.escape, FORBIDDEN))})", text)
    ]
    assert not found


def test_no_module_is_a_drawer() -> None:
    """STYLE: a module is one idea; none is called after being of use to others."""
    drawers = {left + right for left, right in (("uti", "ls"), ("uti", "l"), ("help", "ers"), ("com", "mon"), ("mi", "sc"))}
    assert not [path for path in texts() if path.endswith(".py") and Path(path).stem in drawers]
