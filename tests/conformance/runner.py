"""Replays the cases of tests/vectors against a bus: the sans-I/O core or a live daemon, whichever is passed in."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgpack

from ipcbus.protocol.errors import Code

from . import matching, vectors
from .matching import IncompleteError, MismatchError

#: Whether what has come so far, and whether the connection has ended, is all that is due, or shows already that something is wrong.
Enough = Callable[[Sequence[bytes], bool], bool]

CHALLENGE = 2


class BusUnderTest(Protocol):
    """A bus with nobody connected yet. Peers go by the labels of the vectors."""

    def set_policy(self, text: str) -> None:
        """The rules of *text* are its policy from now on."""
        ...

    def connect(self, peer: str, transport: str) -> None: ...

    def write(self, peer: str, pieces: Iterable[bytes]) -> None:
        """What the peer writes; the bus may have closed the connection before its end."""
        ...

    def shut(self, peer: str) -> None:
        """The peer shuts down its sending side."""
        ...

    def close(self, peer: str) -> None:
        """The peer closes its connection."""
        ...

    def advance(self, seconds: float) -> None: ...

    def addresses(self, peer: str) -> tuple[str, str]:
        """The bus's and the client's end of a TCP connection (H-5)."""
        ...

    def collect(self, peer: str, enough: Enough) -> tuple[list[bytes], bool]:
        """All frames that the bus sent to the peer since the last call, and whether the connection has ended.

        A live bus waits until *enough* says so, for a bounded time, and then looks whether more comes.
        """
        ...


class _Handshake:
    """What a proof covers (H-5): the bytes of HELLO and the frame CHALLENGE of one peer."""

    def __init__(self) -> None:
        self.written = b""
        self.challenge: list[Any] | None = None

    @property
    def hello(self) -> bytes:
        frames, _ = matching.cut(self.written)
        return frames[0][5:]

    def proof(self, addresses: tuple[str, str], role: str, **other: Any) -> bytes:
        """The proof of *role*; *other* takes the place of what it covers."""
        assert self.challenge is not None, "no CHALLENGE came"
        _, _, version, features, nonce, _ = self.challenge
        named = msgpack.unpackb(self.hello)[5].get("identity")
        covered = {
            "version": version, "features": features, "bus_address": addresses[0], "client_address": addresses[1],
            "secret": vectors.NAMED_SECRETS.get(named, vectors.SECRET), "hello": self.hello, "nonce": nonce, "role": role,
            **{key: bytes.fromhex(value) if key in ("secret", "hello", "nonce") else value for key, value in other.items()},
        }  # fmt: skip
        transcript = ["ipcbus-1", *(covered[key] for key in _TRANSCRIPT)]
        return hmac.new(covered["secret"], msgpack.packb(transcript), hashlib.sha256).digest()


_TRANSCRIPT = ("role", "hello", "version", "features", "nonce", "bus_address", "client_address")


class Replay:
    """One case on one bus, its input split in one way."""

    def __init__(self, case: vectors.Case, bus: BusUnderTest, how: str) -> None:
        self._case = case
        self._bus = bus
        self._how = how
        self._open: dict[str, _Handshake] = {}

    def run(self) -> None:
        """Raises MismatchError, with the step in its text, where the bus does not do what the vector says."""
        for number, step in enumerate(vectors.plain_steps(self._case), 1):
            with self._telling(f"step {number}: {str(step)[:500]}"):
                self._do(step)
        for peer in tuple(self._open):
            with self._telling(f"after the last step, to {peer}"):
                self._expect_frames(peer, [])

    @contextmanager
    def _telling(self, where: str) -> Iterator[None]:
        try:
            yield
        except MismatchError as error:
            clauses = ", ".join(self._case.clauses)
            raise MismatchError(f"{self._case} ({clauses}), input {self._how}\n{where}\n{error}") from None

    def _do(self, step: vectors.Step) -> None:
        match step:
            case {"connect": peer, "transport": transport}:
                self._bus.connect(peer, transport)
                self._open[peer] = _Handshake()
            case {"in": source, "peer": peer}:
                self._write(peer, vectors.to_bytes(source) * int(step.get("times", 1)))
            case {"prove": peer, **rest}:
                other = {"role": "client", **rest.get("with", {})}
                proof = self._open[peer].proof(self._bus.addresses(peer), **other)
                self._write(peer, matching.encode([3, 0, proof]))
            case {"out": frames, "peer": peer}:
                self._expect_frames(peer, frames)
            case {"lanes": lanes, "peer": peer}:
                self._expect_lanes(peer, lanes)
            case {"closed": peer, "code": code}:
                self._expect_closed(peer, code)
            case {"eof": peer}:
                self._bus.shut(peer)
            case {"close": peer}:
                self._bus.close(peer)
                del self._open[peer]
            case {"policy": text}:
                self._bus.set_policy(text)
            case {"advance_s": seconds}:
                self._bus.advance(float(seconds))
            case _:
                raise ValueError(f"{self._case}: no such step: {step}")

    def _write(self, peer: str, data: bytes) -> None:
        self._open[peer].written += data
        self._bus.write(peer, vectors.split(data, self._how, f"{self._case}/{peer}/{len(self._open[peer].written)}"))

    def _expect_frames(self, peer: str, expected: Sequence[Any]) -> None:
        def check(frames: Sequence[bytes]) -> None:
            self._note_challenge(peer, frames)
            matching.check_frames(expected, frames, self._proof_check(peer))

        self._expect(peer, check, ended=False)

    def _expect_lanes(self, peer: str, expected: Mapping[str, Sequence[Any]]) -> None:
        self._expect(peer, lambda frames: matching.check_lanes(expected, frames, self._proof_check(peer)), ended=False)

    def _expect_closed(self, peer: str, label: str | None) -> None:
        code = None if label is None else Code[label.upper()].value
        self._expect(peer, lambda frames: matching.check_bye(code, frames), ended=True)
        del self._open[peer]

    def _expect(self, peer: str, check: Callable[[Sequence[bytes]], None], *, ended: bool) -> None:
        def enough(frames: Sequence[bytes], has_ended: bool) -> bool:
            if ended:
                return has_ended
            try:
                check(frames)
            except IncompleteError:
                return has_ended
            except MismatchError:
                pass
            return True

        frames, has_ended = self._bus.collect(peer, enough)
        check(frames)
        if ended and not has_ended:
            raise MismatchError("the bus did not close the connection")

    def _note_challenge(self, peer: str, frames: Sequence[bytes]) -> None:
        for frame in frames:
            elements = matching.envelope(frame)
            if elements[0] == CHALLENGE:
                self._open[peer].challenge = elements

    def _proof_check(self, peer: str) -> matching.ProofCheck:
        def is_proof(role: str, proof: bytes) -> bool:
            return hmac.compare_digest(proof, self._open[peer].proof(self._bus.addresses(peer), role))

        return is_proof
