"""What a peer may want to do, and what each of it is done to."""

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """The words of a rule's `allow` and `deny`."""

    CONNECT = "connect"  #: use the bus at all
    OWN = "own"  #: own a name, or wait for one
    SEND = "send"  #: send a message to the owner of a name
    CALL = "call"  #: call a method of the owner of a name
    PUBLISH = "publish"  #: publish to a topic, have it kept, leave a will on it
    SUBSCRIBE = "subscribe"  #: receive what is published to the topics of a pattern, or what is kept there
    MONITOR = "monitor"  #: see what other peers send each other
    ADMIN = "admin"  #: see the bus's own books: topics, patterns, receivers, losses, accounts


#: What is done to a name; a call also has a method.
OF_NAMES = frozenset({Action.OWN, Action.SEND, Action.CALL})
#: What is done to a topic or pattern.
OF_TOPICS = frozenset({Action.PUBLISH, Action.SUBSCRIBE, Action.MONITOR})
EVERY_ACTION = frozenset(Action)
