"""What the journals of an act must agree on. Each rule returns sentences, one for each thing that is wrong.

The rules hold whatever was killed: what a program did not live to say is not held against the bus.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from tests.chaos.journal import read
from tests.chaos.troupe import Program

Key = tuple[str, int]  #: topic (of one publisher only) and number


class Records:
    """All journals of an act, by program."""

    def __init__(self, programs: Iterable[Program]) -> None:
        self.programs = list(programs)
        self.lines = {program.name: list(read(program.journal)) for program in self.programs}
        self.offered: set[Key] = set()
        self.routed: dict[str, set[int]] = defaultdict(set)  #: by topic
        for line in self._all("offered"):
            self.offered.add((line[1], int(line[2])))
        for line in self._all("routed"):
            self.routed[line[1]].add(int(line[2]))

    def _all(self, word: str) -> Iterator[list[str]]:
        for lines in self.lines.values():
            for line in lines:
                if line[0] == word:
                    yield line

    def count(self) -> Counter[str]:
        """How many lines of each kind there are."""
        return Counter(line[0] for lines in self.lines.values() for line in lines)

    def subscribers(self, *, grouped: bool) -> list[Program]:
        """Programs that subscribed, in a group or not."""
        return [program for program in self.programs if program.subscribes and ("group" in program.options) is grouped]

    def came(self, program: Program) -> list[Key]:
        """What a subscriber got, in order."""
        return [(line[2], int(line[3])) for line in self.lines[program.name] if line[0] == "came"]


def wrong(programs: Iterable[Program]) -> list[str]:
    """Everything that is wrong."""
    records = Records(programs)
    return [
        *_ends(records),
        *_nothing_invented(records),
        *(text for program in records.subscribers(grouped=False) for text in _stream(records, program)),
        *_one_order(records),
        *_group(records),
        *_requests(records),
    ]


def _ends(records: Records) -> Iterator[str]:
    """Who was not killed ended in order."""
    for program in records.programs:
        if not program.killed and program.code != 0:
            yield f"{program.name} ended with {program.code}: {program.errors.read_text()[-2000:]}"
        elif not program.killed and ["done"] not in records.lines[program.name]:
            yield f"{program.name} did not come to its end"


def _nothing_invented(records: Records) -> Iterator[str]:
    """Whatever came was offered, and came as it was."""
    for program in records.programs:
        for line in records.lines[program.name]:
            if line[0] == "broken":
                yield f"{program.name} got something broken: {line}"
            elif line[0] == "came" and (line[2], int(line[3])) not in records.offered:
                yield f"{program.name} got what nobody offered: {line}"


def _stream(records: Records, program: Program) -> Iterator[str]:
    """A subscriber's stream: each topic's messages in order and once; what the bus had routed and is missing was told, at its place, with a
    count that is high enough and not too high."""
    last: dict[str, tuple[int, int]] = {}  #: by topic: the number, and how many notices there were before it
    places: dict[str, int] = {}  #: by publisher
    notices = missing = lost = lost_in_all = came = gaps = 0
    seen_since: dict[str, int] = {}  #: by topic: the gap count at its last message
    ordered = program.options.get("policy") != "latest"  # which promises order by topic only
    for line in records.lines[program.name]:
        if line[0] == "lost":
            notices += 1
            lost += int(line[1])
            lost_in_all += int(line[1])
        elif line[0] == "gap":
            if missing > lost:
                yield f"{program.name}: {missing} routed messages are missing before gap {line[1]}, and {lost} were told as lost"
            notices += 1
            gaps += 1
            missing = lost = 0
        elif line[0] == "came":
            came += 1
            publisher, topic, number, place = line[1], line[2], int(line[3]), int(line[4])
            if ordered and place <= places.get(publisher, 0):
                yield f"{program.name}: {publisher}'s message {place} came after {places[publisher]}"
            places[publisher] = max(place, places.get(publisher, 0))
            before, notices_before = last.get(topic, (0, -1))
            if number <= before:
                yield f"{program.name}: {topic} {number} came after {before}"
            if before and notices_before >= 0:
                between = sum(skipped in records.routed[topic] for skipped in range(before + 1, number))
                if between and notices == notices_before:
                    yield f"{program.name}: {between} routed messages of {topic} between {before} and {number} went without a word"
                if seen_since[topic] == gaps:
                    missing += between
            last[topic] = number, notices
            seen_since[topic] = gaps
    if missing > lost:
        yield f"{program.name}: {missing} routed messages are missing at the end, and {lost} were told as lost"
    if lost_in_all + came > len(records.offered):
        yield f"{program.name}: {came} came and {lost_in_all} were told as lost, of {len(records.offered)} that were offered"
    if not program.killed:
        for topic, (number, notices_then) in last.items():
            final = max(records.routed[topic], default=0)
            if number < final and notices == notices_then:
                yield f"{program.name}: after {topic} {number} nothing came up to {final}, without a word"


def _one_order(records: Records) -> Iterator[str]:
    """L-4: two subscribers that both got two messages got them in the same order."""
    streams = [(p.name, records.came(p)) for p in records.subscribers(grouped=False) if p.options.get("policy") != "latest"]
    for (one, first), (other, second) in combinations(streams, 2):
        place = {key: index for index, key in enumerate(first)}
        before = -1
        for key in second:
            at = place.get(key)
            if at is None:
                continue
            if at < before:
                yield f"{one} and {other} got {key[0]} {key[1]} in another order"
                break
            before = at


def _group(records: Records) -> Iterator[str]:
    """A message goes to one member, once; each member's in the order sent."""
    owner: dict[Key, str] = {}
    for program in records.subscribers(grouped=True):
        last: dict[str, int] = {}
        for topic, number in records.came(program):
            if number <= last.get(topic, 0):
                yield f"{program.name}: {topic} {number} came after {last[topic]}"
            last[topic] = number
            if (topic, number) in owner:
                yield f"{topic} {number} came to {owner[topic, number]} and to {program.name}"
            owner[topic, number] = program.name


def _requests(records: Records) -> Iterator[str]:
    """What was answered was served, nothing was served twice, and every request settled."""
    served = Counter((line[1], int(line[2])) for lines in records.lines.values() for line in lines if line[0] == "served")
    for request, times in served.items():
        if times > 1:
            yield f"request {request} was served {times} times"
    for program in records.programs:
        if not program.options["role"].startswith("requester"):
            continue
        settled = {line[1] for line in records.lines[program.name] if line[0] in ("answered", "failed")}
        for line in records.lines[program.name]:
            if line[0] == "answered" and (program.name, int(line[1])) not in served:
                yield f"{program.name}: {line[1]} was answered by nobody"
            if line[0] == "asked" and line[1] not in settled and not program.killed:
                yield f"{program.name}: {line[1]} was never settled"
