"""The policy that a running bus has: whom it sees in a peer, and who may connect. A reload puts another one in its place.

Owns who is asked for names, and when. Must not know where rules come from (``policy_files`` does) or what happens to who is denied.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ..policy import Policy, Redaction, Subject, Verdict
from .user_database import NameCache

if TYPE_CHECKING:
    from ..broker import Credentials, Peer
    from .config import Config


class PolicyInForce:
    """What the rules are, of a bus that runs as this process's user."""

    __slots__ = ("_names", "policy", "redaction")

    policy: Policy
    redaction: Redaction

    def __init__(self, config: Config) -> None:
        self.use(config)

    def use(self, config: Config) -> None:
        """Take over what *config* says of the policy. Users and groups are looked up anew."""
        files = config.policy
        self.policy = files.in_force(config.kind, os.geteuid(), open_to_others=config.open_to_others)
        self.redaction = files.redaction
        self._names = NameCache() if files.needs_names else None

    def subject_of(self, peer: Peer) -> Subject:
        """Whom the policy judges; who a peer on TCP is shows only after its proof."""
        return Subject(identity=peer.identity) if peer.credentials is None else self._subject(peer.credentials)

    def may_connect(self, credentials: Credentials) -> Verdict:
        """Whether the program at the other end of a Unix socket may use the bus."""
        return self.policy.rights(self._subject(credentials)).connect()

    def _subject(self, who: Credentials) -> Subject:
        subject = Subject(uid=who.uid, gid=who.gid, groups=frozenset(who.groups), unit=who.unit, user_unit=who.user_unit)
        if self._names is None:
            return subject
        return replace(subject, user=self._names.user(who.uid), group=self._names.group(who.gid))
