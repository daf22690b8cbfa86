"""What `ipcbus monitor` prints of a frame: everything in it was written by somebody who may not be trusted."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from ipcbus.cli.monitor import as_json, as_line
from ipcbus_client._message import Message
from ipcbus_client._notices import Lost
from ipcbus_client._seen import KINDS, Seen, check_kinds, seen
from ipcbus_client._senders import NOBODY, Credentials, Sender


def frame(**more: Any) -> Seen:
    fields: dict[str, Any] = {
        "at": 1.5, "kind": "publish", "sender": sender(4, "sensor"), "to": "room", "size": 1, "payload": b"\x05", "clipped": False,
        "redacted": False, "meta": None, "id": None, "request": None, "code": None, "text": None, "receiver": None, "receivers": None,
        "frames": None,
    }  # fmt: skip
    return Seen(**fields | more)


def sender(peer: int, program: str | None = None) -> Sender:
    made = Sender(peer)
    if program is not None:
        made.credentials = Credentials("unix", program, 1, 2, 3, (), "", "", "")
    return made


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "publish  :4 (sensor) -> room  5"),
        ({"sender": sender(4)}, "publish  :4 -> room  5"),
        ({"sender": sender(4, "")}, "publish  :4 -> room  5"),
        ({"meta": {"unit": "C"}}, 'publish  :4 (sensor) -> room  {"unit": "C"}  5'),
        ({"payload": None}, "publish  :4 (sensor) -> room  (1 bytes)"),
        ({"payload": None, "redacted": True, "size": 9}, "publish  :4 (sensor) -> room  (9 bytes, redacted)"),
        ({"payload": b"abc", "clipped": True, "size": 5000},
         'publish  :4 (sensor) -> room  (5000 bytes, which begin {"$text-bytes": "abc"})'),
        ({"payload": b"\xc1"}, 'publish  :4 (sensor) -> room  {"$undecodable": "wQ=="}'),
        ({"payload": b""}, "publish  :4 (sensor) -> room  null"),
        ({"kind": "send", "to": "lamp", "receiver": 7}, "send     :4 (sensor) -> lamp  to :7  5"),
        ({"kind": "request", "to": "lamp/on", "id": 3, "receiver": 7}, "request  :4 (sensor) -> lamp/on  #3  to :7  5"),
        ({"kind": "reply", "to": ":9", "id": 3, "request": "lamp/on"}, "reply    :4 (sensor) -> :9  #3  of lamp/on  5"),
        ({"kind": "cancel", "to": "lamp/on", "id": 3, "payload": b"", "size": 0}, "cancel   :4 (sensor) -> lamp/on  #3"),
        ({"kind": "error", "to": ":9", "id": 3, "request": "lamp/on", "code": "Broken", "text": "so it is"},
         "error    :4 (sensor) -> :9  #3  of lamp/on  Broken: so it is  5"),
        ({"kind": "error", "sender": sender(0), "to": ":9", "id": 0, "request": "a..b", "code": 28, "text": "no", "frames": 3,
          "payload": None, "size": 0}, "error    bus -> :9  of a..b  bad_topic: no"),
        ({"kind": "error", "sender": sender(0), "to": ":9", "id": 5, "request": "bus/will", "code": 31, "redacted": True, "payload": None,
          "size": 0}, "error    bus -> :9  #5  of bus/will  bad_argument  (0 bytes, redacted)"),
    ],
)  # fmt: skip
def test_a_line(more: dict[str, Any], line: str) -> None:
    assert as_line(frame(**more)) == "    1.500000  " + line


BAD = "\x1b[2J\n\r\u202e\x9b"


def test_nothing_of_what_others_wrote_acts_on_a_terminal() -> None:
    hostile = frame(
        kind="error", sender=sender(4, BAD), to=BAD, request=BAD, code=BAD, text=BAD, payload=msgpack.packb(BAD), meta={BAD: BAD}, id=1
    )
    for shown in (as_line(hostile), as_json(hostile)):
        assert shown.isprintable()
    assert json.loads(as_json(hostile))["text"] == BAD


def test_json_has_all_that_is_known() -> None:
    assert json.loads(as_json(frame(receivers=2, meta={"unit": "C"}))) == {
        "at_s": 1.5, "kind": "publish", "sender": 4, "program": "sensor", "to": "room", "size": 1, "redacted": False,
        "headers": {"unit": "C"}, "receivers": 2, "data": 5, "clipped": False,
    }  # fmt: skip
    assert json.loads(as_json(frame(payload=b"\xc0")))["data"] is None
    assert "data" not in json.loads(as_json(frame(payload=None)))
    assert json.loads(as_json(frame(payload=b"\x01", clipped=True)))["data"] == {"$undecodable": "AQ=="}


# --- the copies themselves ------------------------------------------------------------------------------


def test_a_copy_of_a_newer_bus_is_understood_as_far_as_it_goes() -> None:
    content = {"at_s": 1.0, "kind": "wave", "sender": 3, "to": "t", "meta": 1, "size": 2, "new": [1], "payload": b"ab"}
    found = seen(Message((8, 0, "$bus.monitor", None, msgpack.packb(content))))
    assert (found.kind, found.sender, found.data, found.clipped, found.count(None)) == ("wave", 3, b"ab", False, 7)
    assert seen(Message((8, 0, "$bus.monitor", None, b"\xc1"))).kind == ""
    assert seen(Lost(1, "too_slow", "t")) == Lost(1, "too_slow", "t")
    assert NOBODY == {}


def test_kinds_are_checked_before_the_bus_is_asked() -> None:
    assert check_kinds(None) is None
    assert check_kinds(iter(("send", "error", "send"))) == ["send", "error"]
    assert check_kinds(KINDS) == list(KINDS)
    for wrong, error, word in (("send", TypeError, "a list of"), (["sent"], ValueError, "'sent'"), ([], ValueError, "None for all")):
        with pytest.raises(error, match=word):
            check_kinds(wrong)
