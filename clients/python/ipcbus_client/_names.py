"""What a caller may pass for topics, names and sizes, checked before anything is sent: here an illegal one is the caller's ValueError, at
the bus it would be an error later.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from ipcbus import __version__
from ipcbus.protocol import topics
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import Limits

from ._errors import BadName, ConnectError, ConnectReason, Timeout, bad_name
from ._heartbeat import LEAST_S
from ._services import ANY
from ._state import State
from ._turns import CONCURRENCY_MAX

if TYPE_CHECKING:
    from ._calls import Call
    from ._outbox import Outbox
    from ._session import Session

_MODES = ("exclusive", "queue", "shared")
LIBRARY = f"ipcbus-python/{__version__}"  #: what HELLO says
_CREDIT_MAX = Limits().max_credit_bytes
_PREFETCH_MAX = 2**32 - 1  #: a CREDIT's field


#: A caller waits this much longer than its request may take, so that it is the bus that says `expired`.
GRACE_S = 0.25
#: The patience of a bus object without a timeout: the longest that a request may take (R-1).
FOREVER_S = 86_400.0


#: What ends in the child of a fork what its parent had begun.
NO_ANSWER = "the bus did not answer"  #: why there is no connection where no attempt has failed
FORKED = "this is a child made by fork, and this is its parent's; what the bus object is asked for from now on is the child's own"


#: Why the asyncio bus cannot be used in the child of a fork that goes on in the coroutine that forked.
FORKED_LOOP = (
    "this is a child made by fork, and no event loop of its own runs: the one in which it was forked shares its descriptors with the "
    "parent. Leave that one, and use the bus under asyncio.run() in the child"
)


#: The longest that anything waits at once, and then looks again: poll() takes its milliseconds as a C int.
WAIT_MAX_S = 86_400.0


def no_bus(address: str, timeout: float | None, failure: str, reason: ConnectReason, bye: int | None) -> ConnectError:
    """Why connect() gave up, and what to do."""
    within = f"within {timeout:g} s"
    if reason == "nothing_listens":
        text = f"no bus at {address} {within}: {failure}. Start one with `ipcbusd`"
    elif reason == "refused":
        text = f"the bus at {address} let this program not in {within}: {failure}"
        if bye == Code.TOO_MANY_PEERS:
            text += ". End a program that is connected, or have the bus allow more: it said which option does"
    else:
        text = f"the bus at {address} did not answer {within}: {failure or 'nothing came'}. Is it stopped, or busy?"
    return ConnectError(text, reason=reason, who=address)


def no_answer(call: Call, session: Session, failure: str) -> Timeout:
    """Why a wait for the answer to *call* gave up."""
    text = f"the bus did not answer {call.to or 'a ping'} in time"
    if session.state is not State.CONNECTED:
        text = f"{call.to or 'ping'}: not connected: {failure or NO_ANSWER}"
    return Timeout(text + _for_whom(session.outbox), who=call.who() or session.address, what=call.what())


def _for_whom(outbox: Outbox) -> str:
    """Whom the bus holds publications for: a publisher of which it has parked too much is not read, and so not answered either (L-12)."""
    holds = outbox.holds.list()
    return f". It holds publications for {holds[0]}" if holds else ""


def took_nothing(timeout: float | None, outbox: Outbox, address: str) -> Timeout:
    """Why publish() gave up on a bus that does not read."""
    text = f"the bus took nothing for {timeout:g} s; {outbox.unsent_bytes} bytes wait and will be sent when it does"
    hint = "What was published is kept: do not publish it again. See why ipcbusd is stuck."
    return Timeout(text + _for_whom(outbox), who=address, what="publish", hint=hint)


def still_held(outbox: Outbox, address: str) -> Timeout:
    """Why flush() gave up on what was published to topics that are held."""
    by = "; ".join(str(hold) for hold in outbox.holds.list()[:3])
    text = f"{len(outbox.waiting)} messages wait in the outbox, because their topics are held by {by or 'what held them until now'}"
    return Timeout(text, who=address, what="flush", hint="They are sent when that program reads; `ipcbus stats` says who holds whom.")


def check_timeout(timeout: float | None) -> None:
    """Raise TypeError unless *timeout* is None or a number, and ValueError unless that is one of seconds from 0 on; infinity is one."""
    if timeout is None:
        return
    if not hasattr(type(timeout), "__float__"):
        raise TypeError(f"a timeout of {timeout!r:.50}: it is a number of seconds, or None")
    try:
        seconds = float(timeout)
    except OverflowError:
        raise ValueError("a timeout of more seconds than a float can count; None is without a limit") from None
    if not seconds >= 0:  # (a NaN is not)
        raise ValueError(f"a timeout of {seconds} s: it must be at least 0; None is without a limit")


def check_patience(timeout: float | None, reconnect: bool, heartbeat: float | None) -> None:
    """Raise TypeError or ValueError unless connect() can be asked to wait so."""
    check_timeout(timeout)
    check_reconnect(reconnect)
    check_heartbeat(heartbeat)


def patience(timeout: float | None) -> float:
    """*timeout* as a float, infinite for None. Raises as check_timeout()."""
    check_timeout(timeout)
    return inf if timeout is None else float(timeout)


def check_mode(mode: str) -> None:
    """Raise ValueError unless a name can be owned in *mode* (N-1)."""
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(_MODES)}")


def check_reconnect(reconnect: bool) -> None:
    """Raise TypeError unless *reconnect* is True or False: a text that says no would be a yes."""
    if not isinstance(reconnect, bool):
        raise TypeError(f"reconnect={reconnect!r:.50}: it is True or False")


def check_heartbeat(heartbeat: float | None) -> None:
    """Raise TypeError unless *heartbeat* is None or a number, and ValueError unless that is 0, or of seconds that can be kept."""
    if heartbeat is not None and not isinstance(heartbeat, (int, float)):
        raise TypeError(f"a heartbeat of {heartbeat!r:.50}: it is a number of seconds, or None")
    if heartbeat and not LEAST_S <= heartbeat <= WAIT_MAX_S:
        raise ValueError(f"a heartbeat of {heartbeat} s: None is the usual one, 0 none, else it is {LEAST_S:g} to {WAIT_MAX_S:g}")


def check_name(name: str, what: str = "own") -> str:
    """*name* itself where it may be owned (T-5); raises BadName."""
    _check(topics.check_name, name, "name", what)
    return name


def check_peer(peer: int) -> None:
    """Raise TypeError unless *peer* can be the id of one."""
    if not isinstance(peer, int) or isinstance(peer, bool):
        raise TypeError(f"a peer of {peer!r:.50}: it is an int, as `sender` of a message, or `peer_id`")


def check_topic(topic: str, what: str) -> None:
    """Raise BadName unless *topic* is one, of a client or of the bus (T-1)."""
    _check(topics.check_topic, topic, "topic", what)


def check_pattern(pattern: str, what: str) -> None:
    """Raise BadName unless *pattern* is one of topics or names (T-2)."""
    _check(topics.split_pattern, pattern, "pattern", what)


def check_subscription(pattern: str, group: str | None, window_bytes: int, prefetch: int) -> None:
    """Raise BadName or ValueError unless this can be subscribed."""
    check_pattern(pattern, "subscribe")
    if group is not None:
        _check(topics.check_group, group, "group", "subscribe")
    check_window(window_bytes)
    if type(prefetch) is not int:
        raise TypeError(f"prefetch of {prefetch!r:.50}: it is a whole number of messages")
    if not 1 <= prefetch <= _PREFETCH_MAX:
        raise ValueError(f"prefetch of {prefetch}: allowed are 1 to {_PREFETCH_MAX}")


def check_window(window_bytes: int) -> None:
    """Raise ValueError unless so much credit can be given."""
    if type(window_bytes) is not int:
        raise TypeError(f"window_bytes of {window_bytes!r:.50}: it is a whole number")
    if not 1 <= window_bytes <= _CREDIT_MAX:
        raise ValueError(f"window_bytes of {window_bytes}: allowed are 1 to {_CREDIT_MAX}")


def check_callback(callback: object, noun: str = "callback") -> None:
    """Raise TypeError unless *callback* can be called, or is None where there may be none."""
    if not callable(callback) and (callback is not None or noun != "callback"):
        raise TypeError(f"a {noun} is a function, not {type(callback).__name__}")


def check_handling(concurrency: int | None, key: object, errors: str) -> None:
    """Raise ValueError or TypeError unless user code can be run so."""
    if concurrency is not None and type(concurrency) is not int:
        raise TypeError(f"concurrency of {concurrency!r:.50}: it is a whole number")
    if concurrency is not None and not 1 <= concurrency <= CONCURRENCY_MAX:
        raise ValueError(f"concurrency of {concurrency!r}: allowed are 1 to {CONCURRENCY_MAX}")
    if key is not None and not callable(key):
        raise TypeError(f"key is a function of what is handled, not {type(key).__name__}")
    if errors not in ("log", "raise"):
        raise ValueError(f'errors={errors!r}: it is "log" or "raise"')


def check_subscriber(callback: object, concurrency: int, key: object, errors: str) -> None:
    """Raise TypeError or ValueError unless a subscription can have this *callback*, and run it so."""
    check_callback(callback)
    if concurrency is None:
        raise TypeError("concurrency of None: it is a whole number; 1 is one message at a time")
    check_handling(concurrency, key, errors)
    if callback is None:
        said = [name for name, there in (("concurrency", concurrency != 1), ("key", key is not None), ("errors", errors != "log")) if there]
        if said:
            raise ValueError(f"{' and '.join(said)} without a callback: it says how that is run; give one, or leave it out to iterate")


def check_request(to: str) -> None:
    """Raise BadName unless a REQUEST can go to *to* (T-6)."""
    if to in _known:
        return
    _check(topics.split_method, to, "request's target", "request")
    target = to.partition("/")[0]
    if target != topics.BUS_NAME and topics.parse_peer(target) is None:
        check_name(target, "request")
    if len(_known) >= 1024:
        _known.clear()
    _known.add(to)


_known: set[str] = set()  #: targets that passed, for a program asks few services often


def check_request_all(to: str) -> tuple[str, str]:
    """Pattern of names and method of what request_all() shall ask."""
    if not isinstance(to, str) or "/" not in to:
        raise BadName(f"{to!r:.300} is not PATTERN/METHOD, with a pattern of names", who=f"{to}"[:300], what="request_all")
    pattern, _, method = to.partition("/")
    check_pattern(pattern, "request_all")
    _check(topics.check_method, method, "method", "request_all")
    return pattern, method


def check_target(name: str) -> str:
    """*name* itself where requests can go to its methods: a name, a peer address, or the bus. Raises BadName."""
    check_request(f"{name}/method" if isinstance(name, str) else name)
    return name


def check_service(to: str) -> tuple[str, str]:
    """Name and method of what respond() shall serve; the method may be ``*``."""
    if not isinstance(to, str) or "/" not in to:
        raise BadName(f"{to!r:.300} is not NAME/METHOD", who=f"{to}"[:300], what="respond")
    name, _, method = to.partition("/")
    check_name(name, "respond")
    if method != ANY:
        _check(topics.check_method, method, "method", "respond")
    return name, method


def _check(check: Callable[[str], object], text: str, noun: str, what: str) -> None:
    if not isinstance(text, str):
        raise BadName(f"a {noun} is a str, not {type(text).__name__}", what=what)
    try:
        check(text)
    except ProtocolError as error:
        raise bad_name(error, text, what) from error
