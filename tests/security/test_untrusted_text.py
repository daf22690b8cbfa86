"""Text of strangers in the bus's log and on the terminals of others: no line that is not the bus's, and nothing that moves a cursor."""

from __future__ import annotations

import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, wait_until
from tests.security.people import Stranger, needs_users
from tests.wire import Wire

pytestmark = needs_users

#: A line that looks like one of the log, a title of the terminal, a cleared screen, text that runs backwards, a bell, ends of lines.
FAKE_LINE = "2026-01-01T00:00:00 INFO ipcbusd: peer 1 is trusted"
NASTY = f"x\n{FAKE_LINE}\r\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u2028\u0085\x9b31m\x00"
#: What of that may stand in a topic: it has no control characters, but not all that is left is harmless.
NASTY_TOPIC = "open.\u202etxt\u2066.\u2028.\u200b\ufeff.\U000e0041"


def lines_are_safe(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith(FAKE_LINE), line


@pytest.mark.parametrize("character", [*"\n\r\x1b\x00\x07\x7f\x80\x85\x9b ", "\t"])
def test_control_characters_in_topics(character: str, bus: RunningDaemon, mallory: Stranger) -> None:
    with mallory.join(bus) as wire:
        wire.send(encode_with_payload(b"x", Kind.PUBLISH, wire.peer, f"open.a{character}b", 1))
        frame = wire.expect(Kind.ERROR)
        assert frame.elements[4] == Code.BAD_TOPIC
        lines_are_safe(frame.elements[5])
        pattern = {"pattern": f"open.{character}", "lane": 1, "credit": 1}
        for method, said in (("subscribe", pattern), ("own", {"name": f"guest.{character}"})):
            wire.request(f"bus/{method}", pack(said))
            frame = wire.expect(Kind.ERROR)
            assert frame.elements[4] in (Code.BAD_TOPIC, Code.BAD_NAME)
            lines_are_safe(frame.elements[5])


def test_log_injection_by_names_and_topics(daemon_factory: DaemonFactory, mallory: Stranger) -> None:
    """Everything that a stranger chooses and that the bus logs: what it calls itself, topics, names, texts, garbage."""
    bus = daemon_factory("--socket-mode", "0666")  # of its own: of what a busy bus would log some lines are left out
    for directory in (bus.directory, bus.directory.parent):
        directory.chmod(0o711)
    with mallory.connect(bus) as wire:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {"program": NASTY[:40], "library": NASTY[:40], "session": NASTY[:40]}, None))
        wire.peer = wire.expect(Kind.WELCOME).elements[4]
        wire.send(encode_with_payload(b"x", Kind.PUBLISH, wire.peer, "secret" + NASTY_TOPIC, 1))
        wire.send(encode_with_payload(b"x", Kind.PUBLISH, wire.peer, NASTY[:50], 1))
        wire.send(encode_with_payload(b"x", Kind.SEND, wire.peer, NASTY[:50], 1))
        wire.request(f"vault{NASTY[:40]}/method")
        wire.request(f"vault/{NASTY[:40]}")
        wire.request(f"bus/{NASTY[:40]}")
        wire.request("bus/own", pack({"name": NASTY[:40], NASTY: NASTY}))
        wire.send(encode(Kind.BYE, wire.peer, 0, NASTY))
        while wire.receive() is not None:
            pass
    for data in (NASTY.encode(), b"\xce" + NASTY.encode(), b"\n\n" + FAKE_LINE.encode()):
        with mallory.join(bus, program=NASTY[:60]) as wire:
            wire.send(data)
            while wire.receive() is not None:
                pass
    wait_until(lambda: bus.log().count(" closed: ") >= 3, "the ends should be logged")
    logged = bus.log()
    assert f"uid {mallory.uid}" in logged
    lines_are_safe(logged)


def test_confusing_the_terminal_of_a_subscriber(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """`ipcbus sub`, in its formats; what is printed with --raw is bytes by wish, but even then topics are text."""
    with mallory.join(bus, program=NASTY[:60]) as wire:
        for meta, payload in ((2, NASTY.encode()), (None, pack({NASTY: [NASTY]})), (3, b'"' + NASTY.encode() + b'"'), (1, NASTY.encode())):
            frame = encode_with_payload(payload, Kind.RETAIN, wire.peer, f"{NASTY_TOPIC}.n{meta or 0}", meta)
            wire.send(frame)
        headers = {"encoding": 2, "a": NASTY, NASTY[:9]: NASTY.encode()}
        wire.send(encode_with_payload(NASTY.encode(), Kind.RETAIN, wire.peer, f"{NASTY_TOPIC}.n9", headers))
        wire.ping()
        try:
            at = f"--address unix:{bus.path}"
            trusting = {"IPCBUS_BUS_UID": "0", "PYTHONIOENCODING": "utf-8"}
            shown = [alice.start(f"ipcbus sub 'open.>' --count 5 {flags} {at}", **trusting) for flags in ("", "--json")]
            shown.append(alice.start(f"ipcbus peers {at}", **trusting))
            shown.append(alice.start(f"ipcbus names {at}", **trusting))
            for program in shown:
                assert program.wait() == 0, program.err
                lines_are_safe(program.out)
                lines_are_safe(program.err)
            assert shown[0].out.count("gnp.exe") >= 4
            assert "\\u001b" in shown[0].out
        finally:
            for end in (1, 2, 3, 0, 9):
                wire.send(encode_with_payload(b"", Kind.RETAIN, wire.peer, f"{NASTY_TOPIC}.n{end}", 1))
            wire.ping()


def test_confusing_the_terminal_of_a_caller(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """An error of a service, and its traceback, are its own words."""
    with mallory.join(bus) as wire:
        wire.call("own", name="guest.mallory")
        wire.call("serve", name="guest.mallory", methods=["ask"], about={"ask": {"doc": NASTY, "signature": NASTY}})
        program = alice.start(f"ipcbus call guest.mallory/ask --address unix:{bus.path}")
        asked = answer(wire, "guest.mallory/ask")
        wire.send(
            encode_with_payload(pack({"traceback": NASTY}), Kind.ERROR, wire.peer, f":{asked[0]}", asked[1], "nasty", NASTY, None)
        )
        assert program.wait() == 6
        lines_are_safe(program.out)
        lines_are_safe(program.err)
        assert "gnp.exe" in program.err
        described = alice.run(f"ipcbus describe guest.mallory --address unix:{bus.path}")
        lines_are_safe(described.out)


def answer(wire: Wire, to: str) -> tuple[int, int]:
    """Who asked, and the id of the request."""
    while (frame := wire.receive()) is None or frame.kind is not Kind.REQUEST:
        assert frame is not None
    assert frame.elements[2] == to
    return frame.elements[1], frame.elements[3]
