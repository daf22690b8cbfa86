"""What is odd about rules that are each correct: those that never decide, those that contradict each other, those for nobody, and those
that allow more than their names or topics look like.

A rule decides only what no rule before it does. Here a placeholder stands for a text of its own: in the same place it is the same
for every subject, and nothing more is known of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .actions import OF_NAMES, OF_TOPICS, Action
from .limits import LINT_KINDS_MAX
from .ordered import Ordered, TooComplexError
from .people import is_part, nobody, strangers
from .placeholders import is_personal
from .rules import Rule
from .selection import Tokens, patterns_of
from .tree import Node

_YES, _NO = Rule(True), Rule(False)


def lint(rules: Sequence[Rule]) -> list[str]:
    """A line for each oddity of *rules*, in their order."""
    kinds = dict.fromkeys(rule.who for rule in rules)
    if len(kinds) > LINT_KINDS_MAX:
        return [f"dead rules and contradictions were not looked for: the rules concern {len(kinds)} kinds of people, over {LINT_KINDS_MAX}"]
    earlier = {who: {action: _Earlier() for action in Action} for who in kinds}
    includes = {who: [kind for kind in kinds if is_part(kind, who)] for who in kinds}
    lines: list[str] = []
    for rule in rules:
        why = nobody(rule.who)
        if why:
            lines.append(f"{rule.where} concerns nobody: {why}")
            continue
        if rule.allow and strangers(rule.who):
            lines.append(f"{rule.where} allows something to 65534 (nobody): that is also who comes from another user namespace")
        lines += _oddities(rule, earlier[rule.who])
        lines += _unlimited(rule)
        for kind in includes[rule.who]:
            for action in rule.actions:
                earlier[kind][action].add(rule, action)
    return lines


class _Earlier:
    """The rules of one action so far that concern everybody of a kind."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._trees = {True: Node(), False: Node()}  # for rules that allow, for rules that deny
        self._closed = False  # the last one decides everything

    def add(self, rule: Rule, action: Action) -> None:
        if self._closed:
            return
        index = len(self._rules)
        self._rules.append(rule)
        patterns = patterns_of(rule, action)
        self._closed = patterns is None
        for tokens in patterns or ():
            self._trees[True].add(_texts(tokens), index, allow=False)
            if not (rule.allow and any(map(is_personal, tokens))):  # where the value is not known it allows nothing, a denial is for all
                self._trees[False].add(_texts(tokens), index, allow=False)

    def decides(self, tokens: Tokens | None, *, allow: bool) -> tuple[bool, Rule | None]:
        """Whether these rules decide all of a pattern (None: of everything); and if so, and all of it unlike *allow*, one that does."""
        if tokens is None:
            alike = any(rule.allow == allow for rule in self._rules)
            return self._closed, self._rules[-1] if self._closed and not alike else None
        wanted = _texts(tokens)
        trees = (self._trees[allow],)
        rest = [] if self._closed else [_NO]
        if Ordered([_YES] * len(self._rules) + rest, trees).first_denied(wanted) is not None:
            return False, None
        effects = [_NO if rule.allow == allow else _YES for rule in self._rules]
        if Ordered(effects + rest, trees).first_denied(wanted) is not None:
            return True, None
        return True, Ordered(self._rules + rest, trees).decide(["x" if token in ("*", ">") else token for token in wanted])


def _oddities(rule: Rule, earlier: dict[Action, _Earlier]) -> Iterator[str]:
    """What is odd about *rule* after the rules before it that concern everybody whom it concerns."""
    dead: list[Action] = []
    contradictions: list[str] = []
    for action in (action for action in Action if action in rule.actions):
        opposed: dict[Rule, list[str]] = {}
        decided = True
        try:
            for tokens in _targets(rule, action):
                all_of_it, other = earlier[action].decides(tokens, allow=rule.allow)
                decided &= all_of_it
                if other is not None:
                    opposed.setdefault(other, []).append(_shown(tokens, action))
        except TooComplexError:
            yield f"{rule.where} cannot be compared with the rules before it: they are too complex"
            return
        for other, targets in opposed.items():
            more = f" (and {len(targets) - 1} more)" if len(targets) > 1 else ""
            effect, before = ("allows", "denies") if rule.allow else ("denies", "allows")
            contradictions.append(
                f"{rule.where} {effect} {action}{targets[0]}{more}, but {other.where} {before} it before, and the first decides: "
                "put the narrower rule before the wider one"
            )
        if decided and not opposed:
            dead.append(action)
    if len(dead) == len(rule.actions):
        yield f"{rule.where} never decides anything: rules before it do; it can go, or belongs before them"
    elif dead and rule.names is None and rule.topics is None and rule.methods is None:
        yield f"{rule.where} never decides {', '.join(dead)}: rules before it do"
    yield from contradictions


def _unlimited(rule: Rule) -> Iterator[str]:
    """What *rule* allows on everything though it limits something else: `names` is nothing to `publish`."""
    limits = (rule.names, rule.methods, rule.topics)
    limited = {Action.CALL} if rule.methods is not None else set()
    limited |= OF_NAMES if rule.names is not None else set()
    limited |= OF_TOPICS if rule.topics is not None else set()
    words = [action for action in Action if action in (OF_NAMES | OF_TOPICS) - limited and action in rule.actions]
    if rule.allow and words and any(limit is not None for limit in limits):
        key = "names" if words[0] in OF_NAMES else "topics"
        yield f'{rule.where} allows {", ".join(words)} on everything: if that is meant, say {key} = ">"; else limit it, or leave it out'


def _targets(rule: Rule, action: Action) -> Iterable[Tokens | None]:
    patterns = patterns_of(rule, action)
    if patterns is not None:
        return patterns
    if action in OF_NAMES:
        return [("*", ">") if action is Action.CALL else (">",)]
    return [None]  # no pattern is all topics: wildcards leave out the bus's own (T-3)


def _shown(tokens: Tokens | None, action: Action) -> str:
    if tokens is None:
        return ""
    if action is Action.CALL:
        return f" of {tokens[0]!r} of {'.'.join(tokens[1:])!r}"
    return f" {'.'.join(tokens)!r}"


def _texts(tokens: Tokens) -> Tokens:
    """The tokens, each placeholder as a text that nobody can write."""
    return tuple(f"\0{token}" if is_personal(token) else token.replace("%%", "%") for token in tokens)
