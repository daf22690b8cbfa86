"""Random policies, changed while random peers do random things: what happens, and what is left, is what a naive evaluator allows."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from ipcbus.broker import Credentials
from ipcbus.policy import Policy, Rule, Subject, parse
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus.protocol.topics import peer_address

from .harness import Bus, Client
from .policy_world import (
    GROUPS,
    METHODS,
    SUBJECTS,
    USERS,
    Written,
    asked,
    candidates,
    deciding,
    random_pattern,
    random_rule,
    toml,
    world,
)

OBSERVER = Subject(uid=77)
WHO = (*SUBJECTS, OBSERVER)
#: Few, so that they are used again under the next policy.
FEW_TOPICS = ("a", "b", "other", "a.b", "b.a.other")
FEW_NAMES = ("a", "b", "other", "a.b")
UNNAMED = "other"  #: no rule names it, as none names ":"


class Story:
    """A bus, one peer of each subject, and the rules as they were written."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        policy = self.write()
        self.bus = Bus(policy=policy, subject_of=lambda peer: WHO[peer.credentials.pid])  # type: ignore[union-attr]
        self.observer = self.join(len(SUBJECTS))
        assert self.observer is not None
        self.observer.subscribe(">", credit=1 << 30)
        self.clients: dict[Client, Subject] = {}
        for number, who in enumerate(SUBJECTS):
            client = self.join(number)
            assert (client is not None) == self.allows(who, "connect")
            if client is not None:
                self.clients[client] = who
        self.lane = 0

    def write(self) -> Policy:
        """Other rules; the observer may do everything."""
        self.rules: list[Written] = [{"allow": ["*"], "uid": [77]}, *(random_rule(self.chance) for _ in range(self.chance.randint(1, 6)))]
        if self.chance.random() < 0.8:
            self.rules.insert(1, {"allow": ["connect"]})
        self.default = self.chance.random() < 0.4
        parsed = parse(toml(self.rules), "p", users=USERS.get, groups=GROUPS.get)
        assert not parsed.errors
        return Policy(parsed.rules, default=Rule(self.default, where="the default"))

    def join(self, number: int) -> Client | None:
        client = Client(self.bus, self.bus.broker.connect(self.bus.now, credentials=Credentials(number, 1, 1)))
        client.write(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
        return client if client.read()[0][0] == Kind.WELCOME else None

    # --- what is allowed ----------------------------------------------------------------------------

    def allows(self, who: Subject, action: str, target: str = "", method: str = "") -> bool:
        number = deciding(candidates(self.rules, who, action), target, method)
        return "allow" in self.rules[number - 1] if number else self.default

    def allows_pattern(self, who: Subject, action: str, pattern: str) -> bool:
        return all(self.allows(who, action, topic) for topic in world(pattern))

    # --- what peers do ------------------------------------------------------------------------------

    def act(self) -> None:
        """One thing by one peer: denied where it is not allowed, and only there."""
        client = self.chance.choice([*self.clients])
        who, chance = self.clients[client], self.chance
        name, topic, method = chance.choice(FEW_NAMES), chance.choice(FEW_TOPICS), chance.choice(METHODS)
        pattern = chance.choice((asked(random_pattern(chance)), topic))
        other = chance.choice([*self.clients])
        self.lane += 1
        client.read()
        what = chance.choice(("publish", "post", "will", "bind", "restore", "subscribe", "get", "monitor", "own", "send", "call", "admin"))
        if what in ("publish", "post", "will", "bind", "restore"):
            allowed = self.allows(who, "publish", topic)
            if what == "publish":
                client.publish(topic, b"p")
            elif what == "post":
                client.write(encode_with_payload(b"p", Kind.POST, client.id, topic, 1, None, False, None))
            else:
                client.ask_only(what, topic=topic, **({} if what == "bind" else {"payload": b"x"}))
            seen = [envelope[2] for envelope in self.observer.read() if envelope[0] == Kind.PUBLISH]  # type: ignore[union-attr]
            assert seen == [topic] * (allowed and what in ("publish", "post"))
        elif what in ("subscribe", "monitor"):
            allowed = self.allows_pattern(who, what, pattern)
            client.ask_only(what, pattern=pattern, lane=self.lane, credit=1 << 20)
            assert (self.lane in (client.peer.lanes or {})) == allowed
        elif what == "get":
            allowed = self.allows(who, "subscribe", topic)
            client.ask_only("get", topic=topic)
        elif what == "own":
            allowed = self.allows(who, "own", name)
            client.ask_only("own", name=name, mode="queue")
            assert (name in (client.peer.claims or {})) == allowed
            if allowed:
                client.ask_only("serve", name=name, methods=[method])
        elif what == "admin":
            allowed = self.allows(who, "admin")
            client.ask_only("topics")
        else:
            at = chance.random() < 0.5
            to = peer_address(other.id) if at else name
            names = [each for each, claim in (other.peer.claims or {}).items() if what == "send" or claim.serves(method)] if at else [name]
            allowed = all(self.allows(who, what, each, method) for each in names or [UNNAMED])
            if what == "send":
                client.write(encode_with_payload(b"", Kind.SEND, client.id, to, None))
            else:
                client.request(f"{to}/{method}")
        codes = {envelope[4] for envelope in client.read() if envelope[0] == Kind.ERROR}
        assert (Code.DENIED in codes) == (not allowed), (what, who, self.rules, name, topic, pattern, codes)

    # --- another policy -----------------------------------------------------------------------------

    def change(self) -> None:
        """Nobody has afterwards what is not allowed, everybody still has what is, and each loss was told."""
        had = {client: self.held(client) for client in self.clients}
        for client in self.clients:
            client.read()
        self.bus.broker.set_policy(self.write(), self.bus.now)
        for client, who in [*self.clients.items()]:
            if not self.allows(who, "connect"):
                assert [envelope[:3] for envelope in client.read()][-1] == [Kind.BYE, 0, Code.DENIED]
                client.leave()
                del self.clients[client]
                continue
            assert not client.peer.closing
            kept = {thing for thing in had[client] if self.may_keep(who, thing)}
            assert self.held(client) == kept
            told = [notice["what"] for notice in client.notices() if "what" in notice]
            assert sorted(told) == sorted(what for what, *_ in had[client] - kept)
        offered, ends = self.bus.broker.books()
        assert offered == sum(ends.values())

    @staticmethod
    def held(client: Client) -> set[tuple[str, str, int]]:
        peer = client.peer
        lanes: Iterable[tuple[str, str, int]] = (
            ("monitor" if lane.watches else "subscribe", lane.pattern, lane.number) for lane in (peer.lanes or {}).values()
        )
        names = (("own", name, 0) for name in peer.claims or ())
        left = (("publish", topic, 0) for topic in (*(peer.wills or ()), *(peer.bound or ())))
        return {*lanes, *names, *left}

    def may_keep(self, who: Subject, thing: tuple[str, str, int]) -> bool:
        what, target, _ = thing
        return self.allows_pattern(who, what, target) if what in ("subscribe", "monitor") else self.allows(who, what, target)


@pytest.mark.parametrize("seed", range(24))
def test_what_happens_is_what_is_allowed(seed: int) -> None:
    story = Story(seed)
    for turn in range(160):
        if not story.clients:
            break
        if turn % 40 == 39:
            story.change()
        else:
            story.act()
