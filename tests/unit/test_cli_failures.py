"""ipcbus.cli.failures: every exception of the client library has its exit code and a line that says what to do."""

from __future__ import annotations

import pytest

import ipcbus_client as client
from ipcbus.cli.failures import CommandError, Exit, explain
from ipcbus.protocol.errors import Code


@pytest.mark.parametrize(
    ("error", "exit", "says"),
    [
        (client.AddressError("'x' is no address"), Exit.USAGE, "no address"),
        (client.BadName("topic 'a..b' has an empty token"), Exit.USAGE, "empty token"),
        (client.PayloadError("cannot pack"), Exit.USAGE, "cannot pack"),
        (client.ConnectError("none", reason="nothing_listens"), Exit.CONNECT, "no bus at unix:/x: start one with `ipcbusd`"),
        (client.OutboxFull("the outbox is full"), Exit.CONNECT, "no connection to unix:/x: the outbox is full"),
        (client.Refused(Code.NAME_TAKEN, "by peer 3", "bus/own", who="mine"), Exit.REFUSED, "mine: name_taken: by peer 3"),
        (client.ConnectError("uid 7 listens"), Exit.CONNECT, "uid 7 listens"),
        (client.ConnectionLost("reset"), Exit.CONNECT, "unix:/x"),
        (client.Closed("closed"), Exit.CONNECT, "closed"),
        (client.Timeout("no answer"), Exit.TIMEOUT, "--timeout"),
        (client.Expired(Code.EXPIRED, "", "a/b"), Exit.TIMEOUT, "a/b did not answer"),
        (client.NoSuchName(Code.NO_SUCH_NAME, "", "a/b"), Exit.REFUSED, "ipcbus names"),
        (client.NoSuchMethod(Code.NO_SUCH_METHOD, "", "a/b"), Exit.REFUSED, "not served"),
        (client.NoSuchPeer(Code.NO_SUCH_PEER, "", ":4/b"), Exit.REFUSED, "ipcbus peers"),
        (client.Denied(Code.DENIED, "by policy", "a/b"), Exit.REFUSED, "a/b: denied: by policy; Ask whoever runs the bus"),
        (client.Overloaded(Code.OVERLOADED, "busy", "a/b"), Exit.REFUSED, "overloaded: busy"),
        (client.Refused(Code.NAME_TAKEN, "by peer 3", "bus/own"), Exit.REFUSED, "name_taken: by peer 3"),
        (client.ResponderDied(Code.RESPONDER_DIED, "", "a/b"), Exit.SERVICE, "went away"),
        (client.ServiceError("too-hot", "90 degrees", "a/b"), Exit.SERVICE, "answered with too-hot: 90 degrees"),
        (client.BusError("something", hint="Do that."), Exit.REFUSED, "something; Do that."),
        (CommandError(Exit.USAGE, "as it is"), Exit.USAGE, "as it is"),
    ],
)
def test_explanations(error: Exception, exit: Exit, says: str) -> None:
    found = explain(error, "unix:/x")
    assert found is not None
    assert found.exit == exit
    assert says in found.text


def test_a_fault_of_ours_is_not_explained_away() -> None:
    assert explain(KeyError("x"), "unix:/x") is None
