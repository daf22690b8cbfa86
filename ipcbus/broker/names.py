"""Who owns which name, in which mode, and serves which methods under it (N-1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import ABOUT_PEER_MAX_BYTES, Limits
from ..protocol.topics import check_method, check_name
from .accounts import Accounts
from .peers import Peer
from .quotas import NAMES

MODES = ("exclusive", "queue", "shared")
ANY_METHOD = "*"  #: B-3 serve: whatever the request's method is


class Claim:
    """One peer's hold of a name, or its place in line."""

    __slots__ = ("about", "allow_replace", "methods", "mode", "peer")

    def __init__(self, peer: Peer, mode: str, allow_replace: bool) -> None:
        self.peer = peer
        self.mode = mode
        self.allow_replace = allow_replace
        self.methods: set[str] = set()
        self.about: dict[str, bytes] = {}  #: of some methods: what the peer says about them, as msgpack

    def serves(self, method: str) -> bool:
        """Whether requests for *method* may go to this peer."""
        return method in self.methods or ANY_METHOD in self.methods


class Name:
    """One name. ``owners`` has one claim, or in mode shared any number; ``waiting`` is the line for it."""

    __slots__ = ("name", "owners", "shared", "waiting")

    def __init__(self, name: str, shared: bool) -> None:
        self.name = name
        self.shared = shared
        self.owners: list[Claim] = []
        self.waiting: list[Claim] = []

    @property
    def mode(self) -> str:
        """The mode of the present owner."""
        return self.owners[0].mode

    def methods(self) -> set[str]:
        """All that its owners serve."""
        return set().union(*(claim.methods for claim in self.owners))

    def about(self, method: str) -> bytes:
        """What the first owner that says anything about *method* says; empty where nobody does."""
        return next((claim.about[method] for claim in self.owners if method in claim.about), b"")


class Change:
    """What a claim or release did: *name* has other owners now; *lost* had it before, *acquired* got it while it waited."""

    __slots__ = ("acquired", "lost", "name")

    def __init__(self, name: Name, *, lost: Peer | None = None, acquired: Peer | None = None) -> None:
        self.name = name
        self.lost = lost
        self.acquired = acquired


class Names:
    """All names of the bus. Iterates over them in no particular order."""

    def __init__(self, limits: Limits, accounts: Accounts) -> None:
        self.limits = limits
        self._accounts = accounts
        self._names: dict[str, Name] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Name]:
        return iter(self._names.values())

    def get(self, name: str) -> Name | None:
        """The name, if somebody owns it."""
        return self._names.get(name)

    def own(self, peer: Peer, name: str, mode: str, *, replace: bool, allow_replace: bool) -> tuple[int, Change | None]:
        """Claim a name: the place (0: owner) and what changed. Claiming again changes `allow_replace`, and the mode but not to or from
        shared. Raises ``bad_name``, ``reserved``, ``name_taken``, ``over_limit``."""
        check_name(name)
        claims = peer.claims if peer.claims is not None else {}
        record = self._names.get(name)
        if name in claims and record is not None:
            if mode != claims[name].mode and "shared" in (mode, claims[name].mode):
                raise ProtocolError(Code.NAME_TAKEN, f"this peer has {name!r} in mode {claims[name].mode}: release it first (N-1)")
            claims[name].mode = mode
            claims[name].allow_replace = allow_replace
            return self._place(record, claims[name]), None
        if len(claims) >= self.limits.max_names:
            raise ProtocolError(Code.OVER_LIMIT, f"this peer has {len(claims)} names: at most {self.limits.max_names} (limits.max_names)")
        if record is not None:
            self._check_free(record, mode, replace)
        self._accounts.charge(peer.account, NAMES, 1)  # given back where the claim leaves the peer's claims: here and in release
        claim = Claim(peer, mode, allow_replace)
        change: Change | None
        if record is None:
            record = self._names[name] = Name(name, mode == "shared")
            record.owners.append(claim)
            change = Change(record)
        elif record.shared:
            record.owners.append(claim)
            change = Change(record)
        elif replace and record.owners[0].allow_replace:
            old = record.owners[0]
            record.owners[0] = claim
            if old.mode == "queue":
                record.waiting.insert(0, old)
            elif old.peer.claims is not None:
                del old.peer.claims[name]
                self._accounts.release(old.peer.account, NAMES, 1)
            change = Change(record, lost=old.peer)
        else:
            record.waiting.append(claim)
            change = None
        claims[name] = claim
        peer.claims = claims
        return self._place(record, claim), change

    @staticmethod
    def _check_free(record: Name, mode: str, replace: bool) -> None:
        """Raise ``name_taken`` where a claim in *mode* can neither have an owned name nor wait for it."""
        if record.shared != (mode == "shared"):
            raise ProtocolError(
                Code.NAME_TAKEN, f"name {record.name!r} is owned in mode {record.mode}: it cannot be {mode} at the same time (N-1)"
            )
        if not record.shared and mode != "queue" and not (replace and record.owners[0].allow_replace):
            raise ProtocolError(
                Code.NAME_TAKEN,
                f"name {record.name!r} is owned by {record.owners[0].peer}; wait for it with mode 'queue', or let its owner set"
                " allow_replace",
            )

    @staticmethod
    def _place(record: Name, claim: Claim) -> int:
        return 0 if claim in record.owners else record.waiting.index(claim) + 1

    def release(self, peer: Peer, name: str) -> Change | None:
        """Give up a name or the place in line for it; raises ``not_owner``."""
        claim = (peer.claims or {}).pop(name, None)
        if claim is None:
            raise ProtocolError(Code.NOT_OWNER, f"this peer neither owns {name!r} nor waits for it")
        self._accounts.release(peer.account, NAMES, 1)
        record = self._names[name]
        if claim in record.waiting:
            record.waiting.remove(claim)
            return None
        record.owners.remove(claim)
        acquired = None
        if not record.owners:
            if record.waiting:
                record.owners.append(record.waiting.pop(0))
                acquired = record.owners[0].peer
            else:
                del self._names[name]
        return Change(record, acquired=acquired)

    def release_all(self, peer: Peer) -> list[Change]:
        """Give up everything that a peer has."""
        changes = [self.release(peer, name) for name in tuple(peer.claims or ())]
        peer.claims = None
        return [change for change in changes if change is not None]

    def serve(self, peer: Peer, name: str, methods: Iterable[str], about: dict[str, bytes]) -> None:
        """Serve *methods* under a name that the peer owns or waits for, with what it says *about* some of them; raises ``not_owner``,
        ``bad_name``, ``over_limit``.
        """
        claim = self._claim(peer, name)
        new = {method: None for method in methods if method not in claim.methods}  # in order: an error names the first
        under_name = len(self._names[name].methods() | new.keys())
        of_peer = sum(len(one.methods) for one in (peer.claims or {}).values()) + len(new)
        if max(under_name, of_peer) > self.limits.max_methods:
            raise ProtocolError(
                Code.OVER_LIMIT,
                f"{under_name} methods under {name!r}, {of_peer} of this peer: at most {self.limits.max_methods} (limits.max_methods)",
            )
        for method in new:
            if method != ANY_METHOD:
                check_method(method)
        others = sum(len(text) for one in (peer.claims or {}).values() if one is not claim for text in one.about.values())
        if others + sum(map(len, (claim.about | about).values())) > ABOUT_PEER_MAX_BYTES:
            raise ProtocolError(Code.OVER_LIMIT, f"this peer says more than {ABOUT_PEER_MAX_BYTES} bytes about its methods (B-3)")
        claim.methods |= new.keys()
        claim.about |= about

    def unserve(self, peer: Peer, name: str, methods: Iterable[str]) -> None:
        """Serve *methods* no more; raises ``not_owner``."""
        claim = self._claim(peer, name)
        for method in methods:
            claim.methods.discard(method)
            claim.about.pop(method, None)

    @staticmethod
    def _claim(peer: Peer, name: str) -> Claim:
        claim = (peer.claims or {}).get(name)
        if claim is None:
            raise ProtocolError(Code.NOT_OWNER, f"this peer neither owns {name!r} nor waits for it: own it first")
        return claim
