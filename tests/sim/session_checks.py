"""What must be true of a program with a real session at the end: nothing lost, doubled or reordered between wire and program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus_client._errors import BusError
from ipcbus_client._lanes import INBOX
from ipcbus_client._state import State

from .model_client import LEGAL_TOPICS
from .session_parts import WINDOW_BYTES, Reader
from .violations import ViolationError

if TYPE_CHECKING:
    from .session_client import SessionClient


def check(client: SessionClient) -> None:
    """All is quiet and the connection stands."""
    if client.session.state is not State.CONNECTED or client.link is None:
        raise ViolationError(f"{client.label} did not come back: {client.session.state}")
    for reader in client.readers.values():
        _check_reader(client, reader)
    for taker in client.takers.values():
        if taker.taken != taker.wire:
            raise ViolationError(f"{client.label}, {taker.call.to}: took {len(taker.taken)} parts, the wire brought {len(taker.wire)}")
    for call, settled in client.calls:
        if len(settled) != (0 if call in client.given_up else 1):
            raise ViolationError(f"{client.label}: call {call.id} to {call.to or 'ping'} settled {len(settled)} times")
        if call.error is not None and not isinstance(call.error, BusError):
            raise ViolationError(f"{client.label}: call {call.id} failed with {call.error!r}")
    for reader in client.readers.values():
        lane = (client.link.peer.lanes or {}).get(reader.lane.number)
        if lane is not None and lane.credit > WINDOW_BYTES:
            raise ViolationError(f"{client.label}: lane {lane.number} has {lane.credit} bytes of credit, over its window")
    # What was refused after a reconnect, for others have it or an account has no room meanwhile: it goes on trying
    refused = {key for key, declaration in client.session.declarations._all.items() if declaration.refused}
    failed = {number for number, reader in client.readers.items() if reader.subscribed is not None and reader.subscribed.error is not None}
    readers = {number: reader for number, reader in client.readers.items() if ("subscribe", number) not in refused and number not in failed}
    wanted = {number for number, reader in readers.items() if number != INBOX and not reader.lane.closed}
    have = set(client.link.peer.lanes or ())
    if wanted != have:
        raise ViolationError(f"{client.label}: the bus has lanes {sorted(have)}, the program {sorted(wanted)}")
    names = {key[1] for key in client.session.declarations._all if key[0] == "own" and key not in refused}
    if names != set(client.link.peer.claims or ()):
        raise ViolationError(
            f"{client.label}: the bus has names {sorted(client.link.peer.claims or ())}, the program {sorted(map(str, names))}"
        )
    for reader in readers.values():
        if reader.open and reader.lane.gaps != client.session.epoch - reader.made_in_epoch:
            where = f"{client.label}, lane {reader.lane.number} ({reader.lane.pattern})"
            raise ViolationError(f"{where}: {reader.lane.gaps} gaps, but epoch {client.session.epoch} and made in {reader.made_in_epoch}")
    scarce = client.world.oracle.checked["not kept"] or client.session.outbox.waiting.dropped
    for topic, value in () if scarce else client.present.items():
        kept = client.link.broker.publications.kept(topic)
        if value and (kept is None or kept.payload != value):
            raise ViolationError(f"{client.label}: {topic} is {value[:30]!r}, the bus has {kept and kept.payload[:30]!r}")
    _check_published(client)


def check_left(client: SessionClient) -> None:
    """It has gone, and with it what was bound to its connection."""
    assert client.world.broker is not None
    for topic in client.bound:
        kept = client.world.broker.publications.kept(topic)
        if kept is not None and kept.payload == client.present[topic]:
            raise ViolationError(f"{client.label} has gone, {topic} has not")


def _check_reader(client: SessionClient, reader: Reader) -> None:
    where = f"{client.label}, lane {reader.lane.number} ({reader.lane.pattern})"
    if reader.taken != reader.wire:
        raise ViolationError(
            f"{where}: the program took {len(reader.taken)} messages, the wire brought {len(reader.wire)}, or in another order"
        )
    if reader.lane.lost != reader.lost_on_wire:
        raise ViolationError(f"{where}: says that {reader.lane.lost} were lost, the bus said {reader.lost_on_wire}")


def _check_published(client: SessionClient) -> None:
    """Each publication reached the bus once and in order, or died in a connection that was cut."""
    mark = f"{client.label}#".encode()
    mine = set(client.published)
    arrived = [payload for oracle in client.world.oracles for payload in oracle.order if payload.startswith(mark) and payload in mine]
    waiting = client.session.outbox.waiting
    keeps = waiting.policy in ("drop_oldest", "drop_newest")  # what is held waits here: the order is one of each topic (L-12)
    for topic in LEGAL_TOPICS if keeps else [""]:
        numbers = [int(payload.split(b"#")[1]) for payload in arrived if not keeps or client.topics[payload] == topic]
        if numbers != sorted(set(numbers)):
            raise ViolationError(f"{client.label}: publications came twice or out of order {topic}")
    missing = mine.difference(arrived, client.mortal)
    unsent, unknown = client.session.undelivered()
    unsent -= waiting.expired + waiting.dropped
    if unsent or len(missing) > unknown + waiting.dropped:
        raise ViolationError(
            f"{client.label}: {len(missing)} publications did not arrive: {unsent} unsent, {unknown} unknown, {waiting.dropped} dropped"
        )
    silent = [payload for payload in missing if b"#".join(payload.split(b"#")[:2]) + b"#" not in client.excused]
    if len(silent) > waiting.dropped:
        raise ViolationError(f"{client.label}: {silent[0][:20]!r} was published and never reached a bus or a cut connection")
