"""The client's pure tables: which exception a code is, what can be tried again, how long to wait before it, what a caller may pass."""

from __future__ import annotations

import builtins
import copy
import pickle
import time
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus_client import _discovery, _names
from ipcbus_client._backoff import Backoff
from ipcbus_client._errors import _CROSSING, BusError, Verdict, request_error, verdict

SPECIAL = {
    Code.NO_SUCH_NAME: (ipcbus_client.NoSuchName, LookupError),
    Code.NO_SUCH_METHOD: (ipcbus_client.NoSuchMethod, LookupError),
    Code.NO_SUCH_PEER: (ipcbus_client.NoSuchPeer, LookupError),
    Code.RESPONDER_DIED: (ipcbus_client.ResponderDied, ConnectionError),
    Code.EXPIRED: (ipcbus_client.Expired, TimeoutError),
    Code.DENIED: (ipcbus_client.Denied, PermissionError),
    Code.OVERLOADED: (ipcbus_client.Overloaded, ipcbus_client.BusError),
}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_its_exception(code: Code) -> None:
    made = request_error(code.value, "text", "svc/do")
    wanted, also = SPECIAL.get(code, (ipcbus_client.Refused, ipcbus_client.RequestError))
    assert type(made) is wanted
    assert isinstance(made, also)
    assert (made.code, made.text, made.to) == (code, "text", "svc/do")
    assert str(made) == f"svc/do: {code.label}: text"


def test_a_services_code_and_one_of_a_newer_bus() -> None:
    made = request_error("too_hot", "text", "svc/do")
    assert type(made) is ipcbus_client.ServiceError
    assert str(made) == "svc/do: too_hot: text"
    assert type(request_error(999, "", "x")) is ipcbus_client.Refused


class TooHot(ipcbus_client.ServiceError):
    code = "too_hot_here"

    def __init__(self, degrees: float) -> None:
        super().__init__(f"{degrees} °C")


class ByName(ipcbus_client.ServiceError):
    """Its code is its name."""


def test_a_service_error_of_the_program_has_its_code_on_both_sides() -> None:
    raised = TooHot(31.5)
    assert (raised.code, raised.text, str(raised)) == ("too_hot_here", "31.5 °C", "too_hot_here: 31.5 °C")
    made = request_error("too_hot_here", "31.5 °C", "svc/do")
    assert type(made) is TooHot
    assert (made.code, made.text, made.to, made.who) == ("too_hot_here", "31.5 °C", "svc/do", "svc/do")
    assert type(request_error("ByName", "", "x")) is ByName
    by_name = ipcbus_client.ServiceError(code="c", text="t", to="x/y", hint="h")
    for named in (by_name, ipcbus_client.ServiceError("c", "t", to="x/y", hint="h")):
        assert (named.code, named.text, named.to, named.hint) == ("c", "t", "x/y", "h")
    assert (ByName(text="t", who="w").text, ByName(text="t", who="w").who) == ("t", "w")
    assert ByName("text").code == "ByName"
    for error in (made, raised):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.code, again.text, again.to) == (TooHot, error.code, error.text, error.to)


@pytest.mark.parametrize("code", ["", "a" * 65, "with space", 3, None])
def test_a_code_that_cannot_travel_is_refused_where_the_class_is_made(code: Any) -> None:
    with pytest.raises(TypeError, match="a code is a name"):
        type("Bad", (ipcbus_client.ServiceError,), {"code": code})
    type("Good", (ipcbus_client.ServiceError,), {"code": "b" * 64})


@pytest.mark.parametrize("code", sorted(_CROSSING))
def test_a_builtin_exception_arrives_as_itself_and_a_service_error(code: str) -> None:
    made = request_error(code, "text", "svc/do")
    assert isinstance(made, ipcbus_client.ServiceError)
    assert isinstance(made, getattr(builtins, code))
    assert (made.code, made.text, str(made)) == (code, "text", f"svc/do: {code}: text")
    assert type(request_error(code, "", "x")) is type(made)
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), again.text) == (type(made), "text")
    assert type(made.again(who="other")) is type(made)


@pytest.mark.parametrize(
    "code", ["StopIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "Exception", "UnicodeDecodeError", "MemoryError", "print"]
)
def test_other_builtins_stay_codes(code: str) -> None:
    assert type(request_error(code, "text", "x")) is ipcbus_client.ServiceError


def test_a_remote_traceback_is_an_attribute_and_a_note() -> None:
    made = request_error("ValueError", "text", "svc/do", {"traceback": "File x, line 3"})
    assert isinstance(made, ipcbus_client.ServiceError)
    assert made.traceback == "File x, line 3"
    assert "File x, line 3" in made.__notes__[0]
    assert pickle.loads(pickle.dumps(made)).traceback == "File x, line 3"
    for about in ({}, {"traceback": 3}):
        without = request_error("ValueError", "text", "svc/do", about)
        assert isinstance(without, ipcbus_client.ServiceError)
        assert without.traceback is None


def test_exceptions_survive_pickling() -> None:
    made = pickle.loads(pickle.dumps(ipcbus_client.ServiceError("code", "text", "to/x")))
    assert (made.code, made.text, made.to) == ("code", "text", "to/x")


CLASSES: list[tuple[type[BusError], tuple[Any, ...], dict[str, Any], type[BaseException]]] = [
    (BusError, ("text",), {}, Exception),
    (ipcbus_client.ConnectError, ("text",), {"reason": "secret"}, ConnectionError),
    (ipcbus_client.ConnectionLost, ("text",), {}, ConnectionError),
    (ipcbus_client.Closed, ("text",), {}, ConnectionError),
    (ipcbus_client.Timeout, ("text",), {}, TimeoutError),
    (ipcbus_client.OutboxFull, ("text",), {}, BufferError),
    (ipcbus_client.BadName, ("text",), {}, ValueError),
    (ipcbus_client.AddressError, ("text",), {}, ValueError),
    (ipcbus_client.PayloadError, ("text",), {}, ValueError),
    (ipcbus_client.NoSuchName, (20, "text", "to"), {}, LookupError),
    (ipcbus_client.NoSuchPeer, (21, "text", "to"), {}, LookupError),
    (ipcbus_client.NoSuchMethod, (22, "text", "to"), {}, LookupError),
    (ipcbus_client.ResponderDied, (23, "text", "to"), {}, ConnectionError),
    (ipcbus_client.Expired, (24, "text", "to"), {}, TimeoutError),
    (ipcbus_client.Denied, (25, "text", "to"), {}, PermissionError),
    (ipcbus_client.Overloaded, (26, "text", "to"), {}, ipcbus_client.RequestError),
    (ipcbus_client.Refused, (32, "text", "to"), {}, ipcbus_client.RequestError),
    (ipcbus_client.ServiceError, ("too_hot", "text", "to"), {}, ipcbus_client.RequestError),
    (ipcbus_client.BadArguments, ("text",), {}, TypeError),
]


def test_the_table_of_classes_is_whole() -> None:
    public = {value for value in vars(ipcbus_client).values() if isinstance(value, type) and issubclass(value, BusError)}
    assert public <= {cls for cls, *_ in CLASSES} | {ipcbus_client.RequestError}


@pytest.mark.parametrize(("cls", "arguments", "options", "builtin"), CLASSES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_exception_says_who_what_when_and_what_to_do(
    cls: type[BusError], arguments: tuple[Any, ...], options: dict[str, Any], builtin: type[BaseException]
) -> None:
    before = time.time()
    bare = cls(*arguments, **options)
    assert before <= bare.when <= time.time()
    assert bare.hint.endswith(".")
    assert "text" in str(bare)
    assert isinstance(bare, BusError)
    assert isinstance(bare, builtin)
    assert getattr(bare, "errno", None) is None  # a code of the bus is no errno
    made = cls(*arguments, **options).about(who="me", what="doing", hint="Do that.")
    twins = (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made), made.again())
    for other in twins:
        assert type(other) is cls
        assert (other.who, other.what, other.hint, str(other), other.args) == ("me", "doing", "Do that.", str(made), made.args)
        assert other.__dict__ == {**made.__dict__, "when": other.when}
        assert other.__traceback__ is None
    assert all(other.when == made.when for other in twins[:3])


def test_a_connect_error_says_why_to_a_program() -> None:
    made = pickle.loads(pickle.dumps(ipcbus_client.ConnectError("text", reason="secret")))
    assert (str(made), made.reason) == ("text", "secret")
    assert ipcbus_client.ConnectError("text").reason == "timeout"


def test_timeouts() -> None:
    for good in (None, 0, 0.0, 5, 1e7, float("inf"), True):
        _names.check_timeout(good)
    for bad in (-1, -0.001, float("nan"), float("-inf"), 10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"^a timeout of .*None is without a limit"):
            _names.check_timeout(bad)
    for wrong in ("5", b"5", [], object()):
        with pytest.raises(TypeError, match=r"^a timeout of .*number of seconds, or None"):
            _names.check_timeout(wrong)  # type: ignore[arg-type]
    assert (_names.patience(None), _names.patience(5)) == (float("inf"), 5.0)


RETRIED_BYES = {Code.OK, Code.SLOW_READER, Code.HANDSHAKE_TIMEOUT, Code.SHUTTING_DOWN, Code.TOO_MANY_PEERS, Code.INTERNAL, Code.OVER_QUOTA}
RETRIED_DECLARATIONS = {Code.INTERNAL, Code.NAME_TAKEN, Code.OVER_LIMIT, Code.OVERLOADED, Code.NOT_OWNER, Code.EXPIRED}


@pytest.mark.parametrize("code", list(Code))
def test_verdict(code: Code) -> None:
    assert (verdict(code) is Verdict.RETRY) is (code in RETRIED_BYES)
    assert (verdict(code, declaration=True) is Verdict.RETRY) is (code in RETRIED_DECLARATIONS)


def test_backoff_doubles_is_capped_and_jittered() -> None:
    backoff = Backoff()
    assert [backoff.delay_s(n, 1.0) for n in range(8)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert backoff.delay_s(0, 0.0) == 0.025
    assert backoff.delay_s(10_000, 0.0) == 1.0


@pytest.mark.parametrize(
    ("attempt", "connected_s", "after"),
    [
        (0, None, 1),
        (5, None, 6),
        (6, None, 6),  # the cap is reached: more would only have to be taken back
        (5, 0.0, 6),  # let in and dropped
        (5, 0.124, 6),
        (5, 0.125, 5),
        (5, 0.375, 3),
        (6, 0.75, 0),
        (6, 1.0, 0),
        (6, 1e9, 0),
        (0, 0.2, 0),
    ],
)
def test_a_connection_takes_attempts_back(attempt: int, connected_s: float | None, after: int) -> None:
    assert Backoff().next_attempt(attempt, connected_s) == after


@pytest.mark.parametrize(
    ("up_s", "down_s", "most", "slowest_s"),
    [
        (0.0, 0.0, 40, 2.0),  # a daemon that lets us in and drops us: as slow as one that is not there
        (0.1, 0.0, 40, 2.0),
        (0.125, 0.0, 600, 0.1),  # the worst that a listener can have us do: some connections a second
        (1.0, 0.0, 60, 0.1),
        (0.5, 0.3, 80, 0.5),  # restarted again and again: found again at once each time
        (3.0, 0.5, 20, 0.5),
    ],
)
def test_no_tight_loop_and_no_long_wait(up_s: float, down_s: float, most: int, slowest_s: float) -> None:
    """A minute with a daemon that is up and down by turns: how often it is connected to, and how long that takes once it is there."""
    backoff = Backoff()
    now, attempt, connections, slowest = 0.0, 0, 0, 0.0
    while now < 60:
        back_at = now + down_s
        while True:
            now += backoff.delay_s(attempt, 0.99)
            if now >= back_at:
                break
            attempt = backoff.next_attempt(attempt, None)
        connections += 1
        slowest = max(slowest, now - back_at)
        now += up_s
        attempt = backoff.next_attempt(attempt, up_s)
    assert connections <= most
    assert slowest <= slowest_s


def test_names() -> None:
    for to in ("svc/do", ":42/do", "bus/stats", "a.b/c.d"):
        _names.check_request(to)
    for to in ("svc", "/do", "a b/do", "svc/", "bus.x/do", ":x/do", 5):
        with pytest.raises(ipcbus_client.BadName):
            _names.check_request(to)  # type: ignore[arg-type]
    assert _names.check_service("svc/*") == ("svc", "*")
    for to in ("svc", "bus/x", ":1/x", "svc/9", None):
        with pytest.raises(ipcbus_client.BadName):
            _names.check_service(to)  # type: ignore[arg-type]
    for arguments in (("a.>.b", None, 1, 1), ("a", "g g", 1, 1), ("a", None, 0, 1), ("a", None, 1, 0), ("a", None, 2**40, 1)):
        with pytest.raises(ValueError, match=r"\w"):
            _names.check_subscription(*arguments)


def test_addresses_come_from_arguments_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPCBUS_ADDRESS", "unix:/env")
    monkeypatch.setenv("IPCBUS_BUS", "lab")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    assert str(_discovery.find_address("unix:/given", None)) == "unix:/given"
    assert str(_discovery.find_address(None, None)) == "unix:/env"
    assert str(_discovery.find_address(None, "other")).endswith("/other.sock")
    monkeypatch.delenv("IPCBUS_ADDRESS")
    assert str(_discovery.find_address(None, None)).endswith("/lab.sock")
    monkeypatch.delenv("IPCBUS_BUS")
    assert str(_discovery.find_address(None, None)).endswith("/default.sock")
    with pytest.raises(ipcbus_client.AddressError):
        _discovery.find_address("unix:/given", "lab")
    assert _discovery.find_secret_path("/s", None) == "/s"
    assert _discovery.find_secret_path(None, "lab").endswith("/lab.secret")
    monkeypatch.setenv("IPCBUS_SECRET_FILE", "/env.secret")
    assert _discovery.find_secret_path(None, None) == "/env.secret"


def test_of_several_classes_with_one_code_each_catches_it() -> None:
    def library(name: str, base: type = ipcbus_client.ServiceError) -> Any:
        return type("NotFound", (base,), {"__module__": name, "__qualname__": "NotFound", "code": "tests.not_found"})

    one, two = library("one"), library("two")
    made = request_error("tests.not_found", "text", "x/y")
    assert isinstance(made, one)
    assert isinstance(made, two)
    assert str(made) == "x/y: tests.not_found: text"
    assert isinstance(pickle.loads(pickle.dumps(made)), one)
    again = library("one")  # the module is loaded again
    made = request_error("tests.not_found", "text", "x/y")
    assert not isinstance(made, one)
    assert isinstance(made, again)
    assert isinstance(made, two)
    narrower = library("three", two)
    made = request_error("tests.not_found", "text", "x/y")
    assert isinstance(made, narrower)
    assert isinstance(made, again)


def test_where_nothing_can_be_an_instance_of_each_it_is_of_the_last() -> None:
    type("Missing", (ipcbus_client.ServiceError, ImportError), {"__module__": "one", "code": "tests.missing"})
    last = type("Missing", (ipcbus_client.ServiceError, OSError), {"__module__": "two", "code": "tests.missing"})
    assert type(request_error("tests.missing", "text", "x/y")) is last


def test_a_services_error_may_be_made_in_any_way() -> None:
    class Careless(ipcbus_client.ServiceError):
        code = "tests.careless"

        def __init__(self, limit: float) -> None:
            self.limit = limit

    made = Careless(3.5)
    assert (made.code, made.text, made.to, made.who, made.when) == ("tests.careless", "", "", "", 0.0)
    assert str(made) == "tests.careless"
    for text in (ValueError("too much"), 31.5, None):
        error = ipcbus_client.ServiceError("tests.any", text)  # type: ignore[arg-type]
        assert error.text == str(text)
        assert str(error) == f"tests.any: {text}"
