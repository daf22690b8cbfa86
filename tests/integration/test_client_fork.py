"""os.fork() under both shells, with a real daemon: the child's copy says nothing, waits for nobody, and is a bus of its own when used."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon, wait_until

WAIT_S = 30.0
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def in_child(body: Callable[[], Any]) -> str:
    """Fork; what *body* returns in the child (as text), or what it raises there. A child that hangs is killed."""
    with child_of(body) as (_, said):
        return said()


@contextlib.contextmanager
def child_of(body: Callable[[], Any]) -> Iterator[tuple[int, Callable[[], str]]]:
    """A child that runs *body* and exits: its pid, and what waits for its answer."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(WAIT_S))  # (a child that hangs ends by itself; the parent sees that)
        try:
            text = str(body())
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent shall see it
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode() or b" ")
        os._exit(0)
    os.close(write)

    def said() -> str:
        with os.fdopen(os.dup(read), "rb") as pipe:
            return pipe.read().decode().strip() if pipe else ""

    try:
        yield pid, said
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def sockets() -> list[str]:
    """The sockets and eventfds that this process has."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("socket:", "anon_inode:[eventfd]")):
                found.append(target)
    return found


def names(bus: ipcbus_client.Bus) -> list[str]:
    return [name["name"] for name in bus.names()]


def test_the_childs_copy_has_no_descriptor_and_the_parent_goes_on(daemon: RunningDaemon) -> None:
    before = len(sockets())
    with ipcbus_client.connect(daemon.address, name="parent") as bus:
        sub = bus.subscribe("t")
        assert in_child(lambda: len(sockets()) - before) == "0"
        bus.publish("t", "from the parent")
        assert sub.get(WAIT_S).data == "from the parent"
        assert names(bus) == ["parent"]
        assert bus.stats()["peers"] == 1


def test_the_child_is_a_new_peer_that_has_declared_nothing(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, name="parent") as bus:
        sub = bus.subscribe("t")
        bus.publish("t", "before")
        bus.flush()

        def body() -> str:
            sent = bus.stats_local()
            bus.publish("t", "from the child")
            answer = [bus.peer_id, sent["received"], sent["lanes"], bus.own("child"), names(bus)]
            bus.flush()
            answer += [bus.peer_id, bus.stats()["peers"]]
            bus.close()
            return repr(answer)

        assert in_child(body) == "[0, 0, 0, True, ['child', 'parent'], 2, 2]"
        assert [sub.get(WAIT_S).data for _ in range(2)] == ["before", "from the child"]
        wait_until(lambda: names(bus) == ["parent"], "the child's name is left", WAIT_S)
        with pytest.raises(ipcbus_client.Timeout):
            sub.get(0.05)  # neither was sent twice


FIRST_USES: dict[str, Callable[[ipcbus_client.Bus], Any]] = {
    "publish": lambda bus: (bus.publish("x"), bus.flush()),
    "subscribe": lambda bus: bus.subscribe("y").get(WAIT_S).data,
    "callback": lambda bus: (bus.subscribe("z", lambda message: None), bus.ping()),
    "request": lambda bus: bus.request("parent/echo", "hi", timeout=WAIT_S),
    "respond": lambda bus: bus.respond("child/m", lambda request: None),
    "send": lambda bus: (bus.send("parent", 1), bus.flush()),
    "inbox": lambda bus: isinstance(bus.inbox(), ipcbus_client.Inbox) and bus.ping(),
    "own": lambda bus: bus.own("child"),
    "release": lambda bus: (bus.release("parent"), bus.ping()),
    "names": lambda bus: bus.names(),
    "peers": lambda bus: bus.peers(),
    "identity": lambda bus: bus.identity(1),
    "topics": lambda bus: bus.topics(),
    "losses": lambda bus: bus.losses(),
    "stats": lambda bus: bus.stats(),
    "ping": lambda bus: bus.ping(),
    "introspect": lambda bus: bus.introspect(),
    "flush": lambda bus: bus.flush(WAIT_S),
    "get": lambda bus: bus.get("y").data,
    "will": lambda bus: bus.will("gone", 1),
    "drop_will": lambda bus: (bus.drop_will("gone"), bus.ping()),
    "watch": lambda bus: next(iter(bus.watch("y"))),
    "monitor": lambda bus: bus.monitor("y"),
    "wait_for_name": lambda bus: bus.wait_for_name("parent", WAIT_S),
    "request_all": lambda bus: bus.request_all(["parent/echo"], "hi", timeout=WAIT_S)[0].result(),
    "stream": lambda bus: list(bus.stream("parent/count", 3)),
    "proxy": lambda bus: bus.proxy("parent", timeout=WAIT_S).nothing(),
    "serve": lambda bus: bus.serve("child", Served()),
}


class Served:
    """A service."""

    def nothing(self) -> None:
        """Does it."""


def count(request: ipcbus_client.Request) -> Iterator[int]:
    yield from range(request.data)


@pytest.mark.parametrize("use", FIRST_USES)
def test_whatever_is_used_first_connects(daemon: RunningDaemon, use: str) -> None:
    with ipcbus_client.connect(daemon.address, name="parent", timeout=WAIT_S) as bus:
        bus.publish("y", "kept", retain=True)
        bus.respond("parent/echo", lambda request: request.data)
        bus.respond("parent/nothing", lambda request: None)
        bus.respond("parent/count", count)

        def body() -> str:
            FIRST_USES[use](bus)
            return bus.state.value

        with child_of(body) as (_, said):
            assert said() == "connected"
        assert "parent" in names(bus)


def test_every_public_method_is_in_the_list() -> None:
    without = {"close", "wait", "state", "epoch", "address", "peer_id", "holds", "stats_local"}  # they need no connection
    public = {name for name in dir(ipcbus_client.Bus) if not name.startswith("_")}
    assert {*FIRST_USES} - {"callback"} == public - without


def test_what_the_parent_was_handed_is_closed_in_the_child(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as bus:
        sub, box = bus.subscribe("t"), bus.inbox()
        responder = bus.respond("parent/m", lambda request: "parent's")
        bus.publish("t", 1)
        bus.flush()

        def body() -> str:
            errors = []
            for take in (sub.get, lambda: list(sub), box.get):
                try:
                    take()
                except ipcbus_client.ConnectionLost as error:
                    errors.append("fork" in str(error))
            own = bus.subscribe("own", retained=True)
            for one in (sub, box, responder):
                one.close()
            bus.publish("own", "mine")
            return f"{errors} {own.get(WAIT_S).data} {names(bus)}"

        assert in_child(body) == "[True, True, True] mine ['parent']"
        assert sub.get(WAIT_S).data == 1
        assert bus.request("parent/m") == "parent's"


def test_leaving_the_with_block_in_the_child_says_nothing_for_the_parent(daemon: RunningDaemon) -> None:
    def body() -> str:
        with bus:
            pass
        with pytest.raises(ipcbus_client.Closed):
            bus.publish("t")
        return bus.state.value

    with ipcbus_client.connect(daemon.address, name="parent") as bus:
        assert in_child(body) == "closed"
        assert names(bus) == ["parent"]
        assert in_child(lambda: (bus.ping(), bus.close(), bus.state.value)[-1]) == "closed"
        assert names(bus) == ["parent"]


def test_a_fork_of_a_fork(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, name="a") as bus:

        def grandchild() -> str:
            bus.own("c")
            return str(names(bus))

        def child() -> str:
            before = in_child(grandchild)
            bus.own("b")
            wait_until(lambda: "c" not in names(bus), "the grandchild's name is left", WAIT_S)
            return before + in_child(grandchild) + bus.state.value

        assert in_child(child) == "['a', 'c']['a', 'b', 'c']connected"


@pytest.mark.parametrize("shell", ["blocking", "aio"])
def test_the_names_of_a_killed_parent_are_free_although_its_child_lives(daemon: RunningDaemon, shell: str) -> None:
    blocking = "import ipcbus_client\nbus = ipcbus_client.connect(sys.argv[1], name='gone')\nfork()\ntime.sleep(600)\n"
    awaiting = (
        "import asyncio\nfrom ipcbus_client import aio\nasync def main():\n    bus = await aio.connect(sys.argv[1], name='gone')\n"
        "    fork()\n    await asyncio.sleep(600)\nasyncio.run(main())\n"
    )
    code = (
        "import os, sys, time\ndef fork():\n    if os.fork() == 0:\n        print(os.getpid(), flush=True)\n        time.sleep(600)\n"
        "        os._exit(0)\n"
    )
    command = [sys.executable, "-c", code + (blocking if shell == "blocking" else awaiting), daemon.address]
    with (
        ipcbus_client.connect(daemon.address) as bus,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent,
    ):
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert names(bus) == ["gone"]
            parent.kill()
            assert bus.own("gone") or names(bus) == []
        except ipcbus_client.Refused:
            wait_until(lambda: names(bus) == [], "the name is not free", WAIT_S)
        finally:
            os.kill(child, 0)  # it lives
            os.kill(child, signal.SIGKILL)


def test_forks_while_threads_hold_the_lock_publish_and_poll(daemon: RunningDaemon) -> None:
    stop = threading.Event()
    with ipcbus_client.connect(daemon.address, name="parent", timeout=WAIT_S) as bus:
        bus.respond("parent/echo", lambda request: request.data)
        sub = bus.subscribe("t.>")

        def publish() -> None:
            while not stop.is_set():
                for n in range(50):
                    bus.publish(f"t.{n % 3}", n)
                bus.flush(WAIT_S)

        def ask() -> None:
            while not stop.is_set():
                bus.request("parent/echo", "x", timeout=WAIT_S)

        def read() -> None:
            for _ in sub:
                pass

        threads = [threading.Thread(target=target) for target in (publish, publish, ask, read)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                assert in_child(lambda: (bus.ping(), bus.state.value)[-1]) == "connected"
        finally:
            stop.set()
            for thread in threads[:3]:
                thread.join(WAIT_S)
        assert bus.request("parent/echo", "after", timeout=WAIT_S) == "after"
        sub.close()
        threads[3].join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)


def test_a_fork_while_another_thread_has_the_lock(daemon: RunningDaemon) -> None:
    holds, free = threading.Event(), threading.Event()
    with ipcbus_client.connect(daemon.address) as bus:

        def hold() -> None:
            with bus._lock:
                holds.set()
                free.wait(WAIT_S)

        thread = threading.Thread(target=hold)
        thread.start()
        assert holds.wait(WAIT_S)
        assert in_child(lambda: (bus.ping(), bus.state.value)[-1]) == "connected"
        free.set()
        thread.join(WAIT_S)
        assert bus.ping() >= 0


def test_a_fork_in_a_handler_and_in_a_callback(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        said: list[str] = []
        came = threading.Event()

        def callback(message: ipcbus_client.Message) -> None:
            said.append(in_child(lambda: (bus.ping(), bus.state.value)[-1]))
            came.set()

        bus.respond("parent/fork", lambda request: in_child(lambda: (bus.ping(), bus.peer_id > 1)[-1]))
        bus.subscribe("t", callback)
        assert bus.request("parent/fork", timeout=WAIT_S) == "True"
        bus.publish("t")
        assert came.wait(WAIT_S)
        assert said == ["connected"]
        assert bus.request("parent/fork", timeout=WAIT_S) == "True"


def test_a_child_of_a_handler_that_returns_answers_nobody(daemon: RunningDaemon) -> None:
    """The thread of the handler is the only one there is in the child; it must end, and not answer in the parent's place."""
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        children: list[int] = []

        def handler(request: ipcbus_client.Request) -> str:
            pid = os.fork()
            children.append(pid)
            return "the child's" if pid == 0 else "the parent's"

        bus.respond("parent/fork", handler)
        assert bus.request("parent/fork", timeout=WAIT_S) == "the parent's"
        wait_until(lambda: os.waitpid(children[0], os.WNOHANG)[0] != 0, "the child goes on", WAIT_S)


@pytest.mark.parametrize("wait", ["request", "get", "flush"])
def test_a_fork_in_a_signal_handler_that_interrupts_a_wait(daemon: RunningDaemon, wait: str) -> None:
    with (
        ipcbus_client.connect(daemon.address, timeout=WAIT_S) as other,
        ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus,
    ):
        release = threading.Event()
        children: list[int] = []
        forked: list[bool] = []
        other.respond("slow/m", lambda request: release.wait(WAIT_S))
        sub = bus.subscribe("t")
        read, write = os.pipe()

        def fork(number: int, frame: Any) -> None:
            pid = os.fork()
            if pid == 0:
                signal.alarm(int(WAIT_S))
                forked.append(True)
                if wait != "flush":  # (which may have been interrupted with the lock held, under which a handler cannot wait for others)
                    bus.ping()  # the child uses it at once, under the wait that it interrupted
            else:
                children.append(pid)
                release.set()
                other.publish("t", "for the parent")

        before = signal.signal(signal.SIGUSR1, fork)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        try:
            text = "no error"
            try:
                if wait == "request":
                    assert bus.request("slow/m", timeout=WAIT_S) is True
                elif wait == "get":
                    assert sub.get(WAIT_S).data == "for the parent"
                else:
                    while not (children or forked):  # (the signal comes at any place of it, also where the lock is held)
                        bus.flush(2)
            except ipcbus_client.ConnectionLost as error:
                text = str(error)
            except ipcbus_client.Timeout:
                assert forked  # what it had begun to ask was the parent's to ask: in the child it ends at its deadline
            if not children:  # the child
                try:
                    bus.ping()
                    os.write(write, f"{text} {bus.state.value}".encode())
                finally:
                    os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                said = pipe.read()
            assert "fork" in said or (wait == "flush" and "no error" in said)
            assert said.endswith("connected")
            os.waitpid(children[0], 0)
            assert bus.ping() >= 0
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_a_fork_before_the_connection_is_there(daemon: RunningDaemon) -> None:
    daemon.kill()
    made: list[ipcbus_client.Bus] = []
    thread = threading.Thread(target=lambda: made.append(ipcbus_client.connect(daemon.address, timeout=WAIT_S)))
    thread.start()
    assert in_child(lambda: "alive") == "alive"
    again = RunningDaemon(daemon.directory)
    try:
        thread.join(WAIT_S)
        with made[0] as bus:
            assert in_child(lambda: (bus.ping(), bus.state.value)[-1]) == "connected"
    finally:
        again.finish()


def test_what_waits_for_a_connection_is_sent_by_the_parent_only(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        daemon.kill()
        wait_until(lambda: bus.state.value == "reconnecting", "the loss is not noticed", WAIT_S)
        bus.publish("t", "once", retain=True)
        again = RunningDaemon(daemon.directory)
        try:
            assert in_child(lambda: (bus.flush(WAIT_S), bus.stats_local()["waiting"])[-1]) == "0"
            bus.flush(WAIT_S)
            assert [topic["messages"] for topic in bus.topics()] == [1]
        finally:
            bus.close()
            again.finish()


def _in_pool(n: int) -> int:
    assert _shared is not None
    return int(_shared.request("parent/double", n, timeout=WAIT_S))


_shared: ipcbus_client.Bus | None = None


def test_a_pool_of_forked_workers_uses_the_bus_of_its_parent(daemon: RunningDaemon) -> None:
    global _shared
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        bus.respond("parent/double", lambda request: request.data * 2)
        _shared = bus
        try:
            with multiprocessing.get_context("fork").Pool(3) as pool:
                assert pool.map(_in_pool, range(30), chunksize=1) == [n * 2 for n in range(30)]
        finally:
            _shared = None
        assert bus.request("parent/double", 4) == 8


def test_a_child_process_inherits_no_descriptor(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as bus:
        bus.subscribe("t")
        code = "import os; print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2 and n != '3'))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, close_fds=False, check=False)
        assert "eventfd" not in done.stdout
        inodes = [target for target in sockets() if target.startswith("socket")]
        assert inodes
        assert not [inode for inode in inodes if inode in done.stdout]


# --- asyncio ---


def aio_child(body: Callable[[], Awaitable[Any]]) -> str:
    return in_child(lambda: asyncio.run(asyncio.wait_for(body(), WAIT_S)))


def test_asyncio_in_the_child_it_belongs_to_the_loop_that_runs_there(daemon: RunningDaemon) -> None:
    async def main() -> None:
        before = len(sockets())
        async with aio.connect(daemon.address, name="parent", timeout=WAIT_S) as bus:
            sub = await bus.subscribe("t")
            responder = await bus.respond("parent/m", lambda request: request.data)
            assert in_child(lambda: len(sockets()) - before) == "0"

            async def child() -> str:
                errors = []
                try:
                    await sub.get()
                except ipcbus_client.ConnectionLost as error:
                    errors.append("fork" in str(error))
                await responder.close()
                await sub.close()
                mine = await bus.subscribe("mine")
                await bus.publish("mine", 1)
                await bus.publish("t", 2)
                answer = (await mine.get(WAIT_S)).data
                names = [name["name"] for name in await bus.names()]
                await bus.close()
                return f"{errors} {answer} {names} {bus.state.value}"

            loop = asyncio.get_running_loop()
            said = await loop.run_in_executor(None, lambda: in_child(lambda: asyncio.run(asyncio.wait_for(child(), WAIT_S))))
            assert said == "[True] 1 ['parent'] closed"
            assert (await sub.get(WAIT_S)).data == 2
            assert await bus.request("parent/m", 5) == 5
            assert aio_child(child) == "[True] 1 ['parent'] closed"

    asyncio.run(main())


AIO_FIRST_USES: dict[str, Callable[[aio.Bus], Awaitable[Any]]] = {
    "publish": lambda bus: bus.publish("x"),
    "subscribe": lambda bus: bus.subscribe("y"),
    "request": lambda bus: bus.request("parent/echo", "hi", timeout=WAIT_S),
    "respond": lambda bus: bus.respond("child/m", lambda request: None),
    "send": lambda bus: bus.send("parent", 1),
    "inbox": lambda bus: bus.inbox(),
    "own": lambda bus: bus.own("child"),
    "release": lambda bus: bus.release("parent"),
    "names": lambda bus: bus.names(),
    "peers": lambda bus: bus.peers(),
    "identity": lambda bus: bus.identity(1),
    "topics": lambda bus: bus.topics(),
    "losses": lambda bus: bus.losses(),
    "stats": lambda bus: bus.stats(),
    "ping": lambda bus: bus.ping(),
    "introspect": lambda bus: bus.introspect(),
    "flush": lambda bus: bus.flush(WAIT_S),
}


@pytest.mark.parametrize("use", AIO_FIRST_USES)
def test_asyncio_whatever_is_used_first_connects(daemon: RunningDaemon, use: str) -> None:
    with ipcbus_client.connect(daemon.address, name="parent", timeout=WAIT_S) as parent:
        parent.respond("parent/echo", lambda request: request.data)

        async def main() -> None:
            async with aio.connect(daemon.address, timeout=WAIT_S) as bus:

                async def child() -> str:
                    await AIO_FIRST_USES[use](bus)
                    await bus.flush(WAIT_S)
                    return bus.state.value

                assert aio_child(child) == "connected"
                assert await bus.ping() >= 0

        asyncio.run(main())


def test_asyncio_a_child_that_goes_on_in_the_loop_is_told(daemon: RunningDaemon) -> None:
    async def main() -> None:
        async with aio.connect(daemon.address, name="parent", timeout=WAIT_S) as bus:
            sub = await bus.subscribe("t")
            read, write = os.pipe()
            if (pid := os.fork()) == 0:
                said = []
                for use in (lambda: bus.publish("t"), lambda: bus.ping(), lambda: sub.get(), lambda: bus.request("parent/m")):
                    try:
                        await use()
                        said.append("nothing")
                    except ipcbus_client.ConnectionLost as error:
                        said.append("asyncio.run()" if "asyncio.run()" in str(error) else str(error))
                    except BaseException as error:  # noqa: BLE001  # the parent shall see it
                        said.append(repr(error))
                await bus.close()
                os.write(write, repr(said).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                assert pipe.read() == repr(["asyncio.run()"] * 4)
            os.waitpid(pid, 0)
            await bus.publish("t", "the parent's")
            assert (await sub.get(WAIT_S)).data == "the parent's"

    asyncio.run(main())


def test_children_that_leave_at_once(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, name="parent") as bus:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        assert names(bus) == ["parent"]
        assert bus.stats()["peers"] == 1
