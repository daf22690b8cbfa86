"""ipcbus.cli.signatures: words into arguments, by what introspection says, and typing errors with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.cli.failures import CommandError, Exit
from ipcbus.cli.signatures import no_such_method, no_such_name, signature_of, value_of


def about(**types: str) -> dict[str, Any]:
    """What a service says of a method with these parameters; those with a default end with ``=``."""
    arguments = {name: {"type": kind.rstrip("="), "required": not kind.endswith("=") and "*" not in kind} for name, kind in types.items()}
    return {"signature": f"set({', '.join(types)})", "arguments": arguments}


SET = about(target="float", hold="bool=", room="str | None=")
TEXT = about(text="str")
OPEN = about(first="int", more="*int", named="**str")


@pytest.mark.parametrize(
    ("words", "said", "value"),
    [
        ([], {}, None),
        (["21.5"], {}, 21.5),
        (['{"target": 1}'], {}, {"target": 1}),
        (["[1]"], {}, [1]),
        (["1", "two=2"], {}, {"*": [1], "two": 2}),
        (["1", "2"], {}, [1, 2]),
        (["a=text", 'b="quoted"', "c=[1]", "d=x=y", "e="], {}, {"a": "text", "b": "quoted", "c": [1], "d": "x=y", "e": ""}),
        (["21.5"], SET, 21.5),
        (["target=21"], SET, {"target": 21}),
        (["target=21", "hold=true", "room=hall"], SET, {"target": 21, "hold": True, "room": "hall"}),
        (["target=21", "room=null"], SET, {"target": 21, "room": None}),
        (["target=21", "room=7"], SET, {"target": 21, "room": "7"}),
        (["21", "false"], SET, [21, False]),
        (["21", "room=a b"], SET, {"*": [21], "room": "a b"}),
        (["hello"], TEXT, "hello"),
        (["21"], TEXT, "21"),
        (['"quoted"'], TEXT, "quoted"),
        (["text=true"], TEXT, {"text": "true"}),
        (["1", "2", "3", "x=text"], OPEN, {"*": [1, 2, 3], "x": "text"}),
        (["when=2026-01-02T03:04:05Z"], about(when="datetime"), {"when": "2026-01-02T03:04:05Z"}),
        (["mode=eco"], about(mode="Mode"), {"mode": "eco"}),
        (["eco"], about(mode="Mode"), "eco"),
        (["eco", "2"], about(mode="'eco' | 'fast'", hours="int"), ["eco", 2]),
        (["21"], about(mode="'21' | 'x'"), "21"),
        (["a", "b"], about(words="*str"), ["a", "b"]),
        (['{"text": "x"}'], about(text="str", loud="bool="), {"text": "x"}),
        (['{"other": "x"}'], TEXT, '{"other": "x"}'),
        (['["x"]'], TEXT, '["x"]'),
        (["{}"], TEXT, "{}"),
        (["anything"], about(value="object"), "anything"),
        (["reading={\"a\": 1}"], about(reading="Reading"), {"reading": {"a": 1}}),
        (["name=x"], {"doc": "the bus tells arguments in words", "arguments": {"name": "a name"}}, {"name": "x"}),
    ],
)  # fmt: skip
def test_words_become_arguments(words: list[str], said: dict[str, Any], value: Any) -> None:
    found = value_of(words, "svc/set", said)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "said", "text"),
    [
        (["taget=21"], SET, "svc/set has no parameter 'taget'; did you mean target? svc/set(target, hold, room)"),
        (["target=21", "x=1"], SET, "svc/set has no parameter 'x': svc/set("),
        (["hold=true"], SET, "svc/set needs target (float): svc/set("),
        ([], SET, "svc/set needs target (float)"),
        (["target=warm"], SET, 'svc/set: target: expected float, got "warm": svc/set(target, hold, room)'),
        (["warm"], SET, 'svc/set: target: expected float, got "warm": svc/set(target, hold, room)'),
        (["{bad"], about(reading="Reading"), "VALUE is not JSON: '{bad'"),
        (["reading={bad"], about(reading="Reading"), "reading is not JSON: '{bad'"),
        (["abc"], about(data="bytes"), 'data: expected bytes, which --raw sends, got "abc"'),
        (["target=true"], SET, "target: expected float, got true"),
        (['{"target": "warm"}'], SET, 'target: expected float, got "warm"'),
        (["1", "2", "3", "4"], SET, "svc/set takes at most 3 arguments, not 4"),
        (["1", "hold=3"], SET, "hold: expected bool, got 3"),
        (["target=1", "target=2"], SET, "target is given twice"),
        (["notjson"], {}, "VALUE is not JSON"),
        (["1", "notjson"], {}, "VALUE 2 is not JSON"),
    ],
)
def test_typing_errors_are_told_with_what_is_right(words: list[str], said: dict[str, Any], text: str) -> None:
    with pytest.raises(CommandError) as caught:
        value_of(words, "svc/set", said)
    assert caught.value.exit is Exit.USAGE
    assert text in caught.value.text


def test_names_and_methods_that_are_not_there() -> None:
    error = no_such_name("thermostt/set", ["thermostat", "lamp"])
    assert (error.exit, error.text) == (Exit.REFUSED, "nobody owns the name of thermostt/set; did you mean thermostat?")
    assert "`ipcbus names`" in no_such_name("x/y", ["thermostat"]).text
    error = no_such_method("lamp/of", ["on", "off"])
    assert (error.exit, error.text) == (Exit.REFUSED, "lamp/of is not served; did you mean off? lamp has off, on")
    assert no_such_method("lamp/x", []).text == "lamp/x is not served: lamp has no methods"
    assert no_such_method("lamp/x", [f"m{n:02}" for n in range(21)]).text.endswith("m19, …")


def test_signatures() -> None:
    assert signature_of("set", SET) == "set(target, hold, room)"
    assert signature_of("own", {"doc": "", "arguments": {"name": "a name", "mode": "a mode"}}) == "own(name, mode)"
    assert signature_of("ping", {"doc": "", "arguments": {}}) == "ping()"
    assert signature_of("x", {}) == "x(…)"
