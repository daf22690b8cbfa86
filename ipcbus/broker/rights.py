"""What peers may do (section 13): asks the policy where a frame or method wants something, and says no with ``denied``.

A peer that may do everything has no rights here (``Peer.rights`` is None) and is never judged: who calls `Judge` for a frame that comes
often looks at that first. What a publication or send may do is judged where its route is found, and the verdict is the route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..policy import Policy, Rights, Subject, Verdict
from ..policy.rights import NO_NAME
from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import ADDRESS_NAMES_MAX
from ..protocol.topics import check_name, parse_peer, split_pattern
from .effort import JUDGE, JUDGE_STEP, LOOK, Effort
from .peers import Peer

#: Calls that were allowed and are not judged again, of one peer.
CALLS_REMEMBERED = 1_024


def subject_of(peer: Peer) -> Subject:
    """Whom the policy judges, as far as the bus knows by itself: the names of users and groups are not in it."""
    who = peer.credentials
    if who is None:
        return Subject(identity=peer.identity)
    return Subject(uid=who.uid, gid=who.gid, groups=frozenset(who.groups), unit=who.unit, user_unit=who.user_unit)


class Judge:
    """Knows the policy. Each method raises ``denied`` where *peer* may not, and ``bad_topic``, ``bad_name`` or ``reserved`` where what it
    is about is no topic, pattern or name."""

    __slots__ = ("_effort", "_peers", "_policy", "_subject_of")

    def __init__(self, policy: Policy, subject_of: Callable[[Peer], Subject], peers: Mapping[int, Peer], effort: Effort) -> None:
        self._policy = policy
        self._subject_of = subject_of
        self._peers = peers
        self._effort = effort

    def set_policy(self, policy: Policy) -> None:
        """Another policy; `give_rights` has to be called for each peer."""
        self._policy = policy

    def give_rights(self, peer: Peer) -> None:
        """Find out what *peer* may do; who it is must be known. Raises ``denied`` where it may not even be here (P-2)."""
        rights = self._policy.rights(self._subject_of(peer))
        peer.rights = None if rights.unrestricted else rights
        peer.may_call = None
        if peer.rights is not None:
            self._check(rights.connect())

    def _check(self, verdict: Verdict) -> None:
        self._effort.spent += JUDGE
        if not verdict.allowed:
            raise ProtocolError(Code.DENIED, verdict.why)

    # --- topics -------------------------------------------------------------------------------------

    def publish(self, peer: Peer, topic: str) -> None:
        """Whether it may publish to a legal *topic*, or leave something on it (P-3)."""
        if peer.rights is not None:
            self._check(peer.rights.publish(topic))

    def subscribe(self, peer: Peer, pattern: str) -> None:
        """Whether it may get all that *pattern* can match (P-4)."""
        if peer.rights is not None:
            self._pattern(peer.rights, peer.rights.subscribe, pattern)

    def monitor(self, peer: Peer, pattern: str) -> None:
        """Whether it may see what others send to all that *pattern* can match (P-7)."""
        if peer.rights is not None:
            self._pattern(peer.rights, peer.rights.monitor, pattern)

    def _pattern(self, rights: Rights, ask: Callable[[str], Verdict], pattern: str) -> None:
        split_pattern(pattern)
        walked = rights.walked
        verdict = ask(pattern)
        self._effort.spent += JUDGE_STEP * (rights.walked - walked)
        self._check(verdict)

    # --- names --------------------------------------------------------------------------------------

    def own(self, peer: Peer, name: str) -> None:
        """Whether it may own *name* or wait for it (P-5)."""
        if peer.rights is not None:
            check_name(name)
            self._check(peer.rights.own(name))

    def send(self, peer: Peer, to: str) -> None:
        """Whether it may send to a name or peer address (P-6)."""
        if peer.rights is not None:
            for name in self._names_at(to, None):
                self._check(peer.rights.send(name))

    def call(self, peer: Peer, to: str, target: str, method: str) -> None:
        """Whether it may call *method* of a name or peer address, which together are *to* (P-6)."""
        rights, allowed = peer.rights, peer.may_call
        if rights is None or (allowed is not None and to in allowed):
            return
        for name in self._names_at(target, method):
            self._check(rights.call(name, method))
        if target.startswith(":"):
            return  # its names may be others next time
        if allowed is None or len(allowed) >= CALLS_REMEMBERED:
            allowed = peer.may_call = set()
        allowed.add(to)

    def _names_at(self, to: str, method: str | None) -> tuple[str, ...]:
        """The names that a message to *to* is judged by: of a peer address all that the peer has, for a *method* those under which it
        serves that; none where nobody is there, which is told as ever."""
        if not to.startswith(":"):
            check_name(to)
            return (to,)
        number = parse_peer(to)
        peer = self._peers.get(number) if number is not None else None
        if peer is None or peer.half_closed or peer.closing:
            return ()
        claims = peer.claims or {}
        self._effort.spent += LOOK * len(claims)
        names = tuple(name for name, claim in claims.items() if method is None or claim.serves(method))
        if len(names) > ADDRESS_NAMES_MAX:
            text = f"what is for {to} would have to be allowed for each of its {len(names)} names: at most {ADDRESS_NAMES_MAX} may be"
            raise ProtocolError(Code.DENIED, f"{text}; use one of its names instead of its address (P-6)")
        return names or (NO_NAME,)

    # --- the bus ------------------------------------------------------------------------------------

    def admin(self, peer: Peer) -> None:
        """Whether it may see the bus's books (P-7)."""
        if peer.rights is not None:
            self._check(peer.rights.admin())

    def is_admin(self, peer: Peer) -> bool:
        """Whether it may see them, where it gets less without and no denial."""
        return peer.rights is None or peer.rights.admin().allowed
