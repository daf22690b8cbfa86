"""What became of messages, in words: a sentence for each episode of loss, and what to do about it.

Pure functions from the items of ``bus/losses``, ``bus/topics`` and ``bus/receivers`` to text; they ask nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..protocol.topics import matches
from .text import duration, size

Item = Mapping[str, Any]

_ALIKE = 0.75  #: how alike two topics have to be (0 to 1) for one to be taken for a slip of the other

_RAISE = "raise limits.lane_soft_bytes, limits.lane_hard_bytes or limits.lane_stall_s"
_SLOW = {
    "block": "its publishers are held until its time is over, and then, or beyond hard when they have gone, the oldest go",
    "drop_oldest": "beyond these the oldest went",
    "drop_newest": "beyond these the newest went",
    "latest": "one message of each topic waits, and beyond these the oldest went",
    "disconnect": "beyond these its connection is closed",
}
_ADVICE = {
    "too_slow": f"let it take messages faster (concurrency=, a group of several), subscribe with policy latest, or {_RAISE}",
    "replaced": "nothing, if only the last value counts; else subscribe with another policy",
    "expired": "publish with a longer ttl, or let the subscriber take messages faster",
    "evicted": "subscribe in a group whose other members go on, or have the last value kept: publish with retain",
    "over_quota": "let it take messages faster, or raise the limit that is named",
    "unknown": "where it matters that they arrived, ask for an answer: request() instead of publish()",
    "not_kept": "raise the limit that is named, or remove what is kept and not needed: publish an empty retained message",
    "timed_out": "give the request a longer timeout, or let the service answer faster (concurrency=)",
    "responder_died": "look at the service's own log; requests that may run twice are asked again with idempotent=True",
    "closed": "",
    "refused": "",
}
_KINDS = {"REQUEST": "request", "SEND": "direct message", "REPLY": "answer", "ERROR": "answer", "PART": "answer"}
_REFUSED = {
    "bad_topic": "a topic is tokens with '.' between them, without wildcards (PROTOCOL.md, T-1)",
    "reserved": "what begins with '$' (topics) or 'bus' (names) is the bus's own: choose another",
    "no_such_name": "start the service that owns the name; wait_for_name() waits for it",
    "no_such_peer": "it has gone: address a name instead of a peer",
    "no_such_method": "`ipcbus names` lists what each name serves",
    "overloaded": "it does not read, or has too many requests: let it answer faster, start another with --mode shared",
    "no_such_request": "the answer came after its requester had gone, given up or waited too long",
    "denied": "write a rule that allows it and comes before that one, and reload the bus; `ipcbus policy test` says what holds then",
    "over_limit": "raise the limit that is named",
    "over_quota": "let it read faster and end the frames that it begins, or raise the limit that is named",
    "slow_reader": "let it read faster, or subscribe with a policy that drops instead (drop_oldest, latest)",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that happened to messages: how long ago, what, more about it, what to do."""

    ago_s: float
    what: str
    more: list[str] = field(default_factory=list)
    do: str = ""

    def lines(self) -> list[str]:
        """For a person, the first line without an indent."""
        margin = " " * 4
        return [
            f"{duration(self.ago_s)} ago: {self.what}",
            *(f"{margin}{line}" for line in self.more),
            *([f"{margin}→ {self.do}"] if self.do else []),
        ]


def explain_loss(item: Item, names: Iterable[str] = ()) -> Reason:
    """An episode of ``bus/losses``; *names* are the ones that there are, for who wrote one wrong."""
    why, who, topic, about = item["why"], _who(item), item.get("topic") or "", item.get("about") or ""
    some = _messages(item["count"]) + (f" ({size(item['bytes'])})" if item["bytes"] else "")
    were = "was" if item["count"] == 1 else "were"
    what = {
        "too_slow": f"{who} lost {some}: it did not keep up",
        "replaced": f"{who} lost {some}: newer ones of the same topic took their place",
        "expired": f"{who} lost {some}: they waited longer than their time to live",
        "evicted": f"{who} ended while {some} waited for it",
        "over_quota": f"{who} lost {some}: there was no room",
        "unknown": f"{who} went with {some} in its output: whether they arrived is not known",
        "not_kept": f"{some} of {who} on {topic!r} {were} delivered, but not kept for those who subscribe later",
        "timed_out": f"{_requests(item['count'])} to {topic!r} had no answer in time from {who}",
        "responder_died": f"{_requests(item['count'])} to {topic!r} had no answer: {who} went",
        "closed": f"the bus ended the connection of {who}: {item.get('code')}",
        "refused": f"{_frames(item)} of {who} to {topic!r} {were} refused: {item.get('code')}",
    }.get(why, f"{who}: {some}: {why}")
    more = []
    if about:
        more.append(about)
    if item.get("code") == "denied" and item.get("uid") is not None:
        more.append(f"it asked as uid {item['uid']}")
    if why == "unknown":
        more.append("which ones they were is not known")
    if topic and why in ("too_slow", "replaced", "expired", "evicted", "over_quota"):
        more.append(f"the first was on {topic!r}{_from(item)}")
    elif item.get("sender"):
        more.append(f"asked by {_program(item, 'sender')}")
    if item.get("policy"):
        more.append(_terms(item))
    lasted = item["first_s"] - item["last_s"]
    if lasted >= 1:
        more.append(f"it went on for {duration(lasted)}")
    return Reason(item["last_s"], what, more, _advice(item, topic, names))


def explain_unwanted(item: Item, patterns: Iterable[str]) -> Reason:
    """A topic of ``bus/topics`` to which messages were published that nobody wanted."""
    topic, count = item["topic"], item["no_subscriber"]
    if item["lanes"]:
        now = " then; now somebody does"
        do = "subscribe before the first message is published, or publish with retain: what is kept comes to who subscribes later"
    else:
        near = nearest(topic, patterns)
        now = f" (did you mean {_listed(near)}?)" if near else ""
        kept = item["retained"]
        now += "; the last is kept for those who subscribe later" if kept else ""
        do = "" if near or kept else "publish with retain, if it is for those who subscribe later"
    what = f"{_messages(count)} on {topic!r} went to nobody: nobody subscribed to it{now}"
    return Reason(item["no_subscriber_s"], what, [], do)


def explain_receiver(item: Item) -> str:
    """A line about one item of ``bus/receivers``."""
    members = item["members"]
    who = ", ".join(_program(member, "peer") for member in members[:3])
    if item["group"] is not None:
        who = f"the group {item['group']!r} ({who}{' and others' if len(members) > 3 else ''})"
    line = f"{item['pattern']!r} of {who}, policy {item['policy']}: "
    if not item["queued"]:
        return line + "nothing waits"
    line += f"{_messages(item['queued'])} wait{'s' if item['queued'] == 1 else ''} ({size(item['queued_bytes'])})"
    if not any(member["credit"] for member in members):
        line += ", for it has not handled what it got"
    return line + ("; it has not kept up, and loses messages" if item["dropping"] else "")


def explain_topic(
    topic: str, counted: Item | None, others: Item | None, receivers: Sequence[Item], near: Sequence[str], published: Sequence[str]
) -> list[str]:
    """What is known of one topic. *others* is the item that topics share, among whose losses some of this one's may be (B-3); *near* are
    patterns, and *published* topics, that are spelled much like it."""
    if counted is None:
        lines = [f"nothing was published to {topic!r}" + (f"; did you mean {_listed(published)}?" if published else "")]
    else:
        sent = f"{_messages(counted['messages'])} ({size(counted['bytes'])})"
        ends = [
            f"{'at least ' if key in ('lost', 'expired') and others and others[key] else ''}{counted[key]} {words}"
            for key, words in (("no_subscriber", "wanted by nobody"), ("lost", "lost"), ("expired", "expired"), ("not_kept", "not kept"))
            if counted[key]
        ]
        kept = "; the last is kept" if counted["retained"] else ""
        lines = [f"{sent} published to {topic!r}: {', '.join(ends) or 'none is known to be lost'}{kept}"]
    if receivers:
        return [*lines, "who gets it now:", *(f"    {explain_receiver(item)}" for item in receivers)]
    return [*lines, "nobody subscribes to it" + (f"; did you mean {_listed(near)}?" if near else "")]


def explain_peer(item: Item) -> str:
    """A line about one item of ``bus/peers``: its books."""
    ends = (
        ("queued", "waiting"),
        ("dropped", "lost, because it was slow"),
        ("replaced", "replaced by newer ones"),
        ("expired_messages", "expired"),
        ("evicted", "given up when a subscription ended"),
        ("over_quota", "over quota"),
    )
    parts = [f"{item['delivered']} delivered", *(f"{item[key]} {words}" for key, words in ends if item[key])]
    names = f" owns or waits for {', '.join(map(repr, item['names'][:5]))} and" if item["names"] else ""
    line = f"{_program(item, 'peer')}{names} was offered {_messages(item['offered'])}"
    line += f": {', '.join(parts)}" if item["offered"] else ""
    return line + (f"; {item['refused']} of its own {'was' if item['refused'] == 1 else 'were'} refused" if item["refused"] else "")


def explain_holding(item: Item) -> Reason:
    """One queue of ``holding`` in ``bus/stats``: its publishers wait for it."""
    group = f" (group {item['group']!r})" if item.get("group") else ""
    several = "1 publisher is" if item["publishers"] == 1 else f"{item['publishers']} publishers are"
    what = f"{several} held by {item['pattern']!r}{group} of {_program(item, 'peer')}"
    return Reason(
        0.0,
        f"{what}, for {duration(item['held_s'])} now",
        [f"{size(item['bytes'])} wait for it; nothing of it is lost"],
        "let it take messages faster, or subscribe with a policy that drops",
    )


def summary(stats: Item) -> str:
    """The books of the bus in a line."""
    ends = (
        ("dropped", "lost by slow subscribers"),
        ("replaced", "replaced by newer ones"),
        ("expired_messages", "expired"),
        ("evicted", "given up when their subscription ended"),
        ("over_quota", "over quota"),
        ("unknown", "on their way when a connection went"),
        ("queued", "waiting"),
    )
    parts = [f"{stats['delivered']} delivered", *(f"{stats[key]} {words}" for key, words in ends if stats.get(key))]
    beside = [f"{stats[key]} {words}" for key, words in (("no_subscriber", "for nobody"), ("refused", "refused")) if stats.get(key)]
    line = f"since the bus started, {duration(stats['uptime_s'])} ago: {stats['offered']} offered to receivers = {' + '.join(parts)}"
    return f"{line}; besides {', '.join(beside)}" if beside else line


def nearest(text: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """The patterns, topics or names among *candidates* of which *text* may be a slip, the most alike first."""
    from difflib import SequenceMatcher

    found = []
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(text)
    for candidate in candidates:
        fitted = _fit(candidate, text)
        if candidate == text or fitted == text:
            continue
        matcher.set_seq1(fitted)
        if matcher.real_quick_ratio() >= _ALIKE and matcher.quick_ratio() >= _ALIKE and (ratio := matcher.ratio()) >= _ALIKE:
            found.append((-ratio, candidate))
    return [candidate for _, candidate in sorted(found)[:most]]


def _fit(pattern: str, topic: str) -> str:
    """*pattern* with what *topic* has in the places of its wildcards."""
    tokens, given = pattern.split("."), topic.split(".")
    fitted = [given[at] if token == "*" and at < len(given) else token for at, token in enumerate(tokens)]
    if tokens[-1] == ">":
        fitted[-1:] = given[len(tokens) - 1 :]
    return ".".join(fitted)


def concerns(item: Item, what: str, peers: set[int]) -> bool:
    """Whether an episode has to do with *what* a person asked about: a topic, a pattern, a program, or a name or address of *peers*."""
    if item.get("peer") in peers or item.get("sender") in peers or what in (item.get("program"), item.get("sender_program")):
        return True
    topic, pattern = item.get("topic") or "", item.get("pattern") or ""
    if what in (topic, pattern) or topic.startswith(f"{what}/"):
        return True
    if topic.startswith("bus/") and repr(what) in item["about"]:
        return True  # a request to the bus: what it was about is in the words of its answer
    if what.startswith(":") or "/" in topic or topic.startswith(":"):
        return False
    return (bool(topic) and matches(what, topic)) or (bool(pattern) and matches(pattern, what))


# --- parts of sentences ---------------------------------------------------------------------------


def _program(item: Item, role: str) -> str:
    """``thermostat (peer 7, pid 4242)``; *role* is ``peer`` or ``sender``."""
    prefix = "sender_" if role == "sender" else ""
    pid = item.get(f"{prefix}pid")
    return f"{item.get(f'{prefix}program') or 'a program'} (peer {item.get(role)}{f', pid {pid}' if pid else ''})"


def _who(item: Item) -> str:
    """Who lost it, was refused or did not answer."""
    if item.get("group"):
        return f"the group {item['group']!r} on {item['pattern']!r}"
    if item.get("pattern"):
        return f"the subscription {item['pattern']!r} of {_program(item, 'peer')}"
    return _program(item, "peer")


def _from(item: Item) -> str:
    return f", from {_program(item, 'sender')}" if item.get("sender") else ""


def _terms(item: Item) -> str:
    limits = item.get("limits") or {}
    said = [f"{key} {size(limits[key])}" for key in ("soft", "hard") if key in limits]
    said += [f"{limits['seconds']:g} s"] if "seconds" in limits else []
    slow = f": {_SLOW[item['policy']]}" if item["why"] == "too_slow" and item["policy"] in _SLOW else ""
    return f"its policy is {item['policy']} ({', '.join(said)}){slow}"


def _advice(item: Item, topic: str, names: Iterable[str]) -> str:
    code = item.get("code") or ""
    if item["why"] not in ("refused", "closed"):
        return _ADVICE.get(item["why"], "")
    if code == "no_such_name":
        name = topic.partition("/")[0]
        near = nearest(item["about"].partition("'")[2].partition("'")[0] if name == "bus" else name, names)
        if near:
            return f"did you mean {_listed(near)}?"
    return _REFUSED.get(code, "")


def _listed(texts: Sequence[str]) -> str:
    return " or ".join(map(repr, texts))


def _messages(count: int) -> str:
    return f"{count or 'no'} message{'' if count == 1 else 's'}"


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _frames(item: Item) -> str:
    count = item["count"]
    return f"{count} {_KINDS.get(item['kind'], 'publication')}{'' if count == 1 else 's'}"
