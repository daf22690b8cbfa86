"""What a user without rights tries where others may make files too, as in /tmp: to be there first, to lay links, to swap directories."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.daemon.listeners import ListenError, open_listeners
from ipcbus.daemon.places import PlaceError
from ipcbus.daemon.secret_file import load_secrets
from ipcbus.protocol.addresses import UnixAddress
from ipcbus_client import aio
from tests.daemons import START_S, RunningDaemon, command, environment, run_ipcbusd
from tests.security.people import MALLORY, Stranger, needs_users

pytestmark = needs_users


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory as /tmp is one: everybody may put something there, and nobody take away what is another's."""
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        place = Path(path) / "shared"
        place.mkdir()
        Path(path).chmod(0o755)
        place.chmod(0o1777)
        yield place


@pytest.fixture
def precious(shared: Path) -> Path:
    """A directory of root's."""
    place = shared.parent / "precious"
    place.mkdir(mode=0o700)
    return place


def refused(path: str) -> str:
    """Why root's bus does not listen on the Unix socket *path*."""
    with pytest.raises(ListenError) as caught:
        open_listeners([UnixAddress(path)], mode=0o600, group=None)
    return str(caught.value)


def refused_secret(path: str) -> str:
    """Why root's bus does not take the secret in *path*."""
    with pytest.raises(PlaceError) as caught:
        load_secrets(path, None)
    return str(caught.value)


# --- before the bus starts ---


def test_squatting_the_socket_path_before_start(shared: Path, mallory: Stranger) -> None:
    """In a directory where others may write nothing is safe, and in one of mallory's even less."""
    with mallory.do("listen", f"{shared}/bus.sock"):
        assert f"{shared} has mode 1777, so others can put files into it" in refused(f"{shared}/bus.sock")
        assert stat.S_ISSOCK(os.lstat(shared / "bus.sock").st_mode), "what another made is left alone"
    mallory.do("mkdir", f"{shared}/run")
    assert f"{shared}/run belongs to uid {MALLORY}" in refused(f"{shared}/run/bus.sock")
    mallory.do("chmod", f"{shared}/run", 0o755)
    assert f"{shared}/run belongs to uid {MALLORY}" in refused(f"{shared}/run/deeper/bus.sock")
    assert mallory.do("listdir", f"{shared}/run") == []


def test_squatting_in_an_own_directory_below_a_sticky_one(shared: Path, alice: Stranger, mallory: Stranger) -> None:
    """alice's bus is as careful as root's, and mallory cannot get at it once it is there."""
    mallory.do("mkdir", f"{shared}/taken")
    tried = alice.run(f"ipcbusd --config /dev/null --listen unix:{shared}/taken/bus.sock")
    assert tried.code != 0
    assert f"{shared}/taken belongs to uid {MALLORY}" in tried.err
    alice.do("mkdir", f"{shared}/hers")
    alice.do("chmod", f"{shared}/hers", 0o711)
    with alice.do("listen", f"{shared}/hers/bus.sock"):
        hers = f"{shared}/hers"
        for order, *arguments in (("unlink", f"{hers}/bus.sock"), ("listen", f"{hers}/other"), ("rename", hers, f"{shared}/x")):
            with pytest.raises(PermissionError):
                mallory.do(order, *arguments)


def test_a_secret_that_somebody_else_laid_there(shared: Path, precious: Path, mallory: Stranger) -> None:
    mallory.do("write", f"{shared}/bus.secret", "x" * 32)
    assert "others can put files into it" in refused_secret(f"{shared}/bus.secret")
    mallory.do("mkdir", f"{shared}/mine")
    mallory.do("write", f"{shared}/mine/known", "x" * 32)
    assert f"belongs to uid {MALLORY}" in refused_secret(f"{shared}/mine/known")
    os.symlink(f"{shared}/mine/known", precious / "bus.secret")
    assert "symbolic link" in refused_secret(f"{precious}/bus.secret")


# --- links ---


@pytest.mark.parametrize("name", ["bus.sock", "bus.sock.lock", "bus.secret"])
def test_a_link_is_not_followed(name: str, precious: Path, shared: Path) -> None:
    """Whoever laid it: at the places of all files that a bus makes."""
    target = shared.parent / "target"
    target.write_text("precious")
    (precious / name).symlink_to(target)
    said = refused_secret(f"{precious}/bus.secret") if name == "bus.secret" else refused(f"{precious}/bus.sock")
    assert name in said
    assert target.read_text() == "precious"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert (precious / name).is_symlink()


def test_a_link_to_a_directory_of_ours(shared: Path, precious: Path, mallory: Stranger) -> None:
    """It leads to a good place when it is looked at, and to another when it is used."""
    mallory.do("symlink", str(precious), f"{shared}/run")
    said = refused(f"{shared}/run/bus.sock")
    assert f"{shared}/run belongs to uid {MALLORY}" in said
    said = refused(f"{shared}/run/sub/bus.sock")
    assert f"{shared}/run belongs to uid {MALLORY}" in said
    said = refused_secret(f"{shared}/run/bus.secret")
    assert f"{shared}/run belongs to uid {MALLORY}" in said
    assert list(precious.iterdir()) == []


@pytest.mark.parametrize("option", ["--policy-file", "--policy-dir", "--config"])
def test_rules_that_somebody_else_wrote(option: str, shared: Path, precious: Path, mallory: Stranger) -> None:
    mallory.do("mkdir", f"{shared}/mine")
    text = 'socket_mode = "0666"\n' if option == "--config" else f'[[rule]]\nallow = "*"\nuid = {MALLORY}\n'
    mallory.do("write", f"{shared}/mine/all.toml", text)
    mallory.do("symlink", f"{shared}/mine", f"{shared}/link")
    what = "" if option == "--policy-dir" else "/all.toml"
    flags = [f"--listen=unix:{precious}/bus.sock", *([] if option == "--config" else ["--config", os.devnull])]
    done = run_ipcbusd(*flags, option, f"{shared}/link{what}")
    assert done.returncode == 2
    assert f"belongs to uid {MALLORY}" in done.stderr
    assert not (precious / "bus.sock").exists()


# --- races ---


def test_racing_the_start_with_links(shared: Path, precious: Path, mallory: Stranger) -> None:
    """While mallory swaps the directory for a link and back, the bus starts safely or not at all."""
    mallory.do("mkdir", f"{shared}/trap")
    racer = mallory.do("race", f"{shared}/run", str(precious), f"{shared}/trap")
    try:
        for _ in range(4):
            with subprocess.Popen(
                command("--config", os.devnull, f"--listen=unix:{shared}/run/bus.sock", "--ready-fd=1"),
                env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ) as daemon:  # fmt: skip
                assert daemon.stdout is not None
                if daemon.stdout.readline():
                    found = os.lstat(shared / "run")
                    assert (found.st_uid, stat.S_ISDIR(found.st_mode)) == (0, True)
                    daemon.terminate()
                _, said = daemon.communicate(timeout=START_S)
                assert "Traceback" not in said, f"\n{said}"
            assert list(precious.iterdir()) == []
            assert mallory.do("listdir", f"{shared}/trap") == []
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(shared / "run").st_uid == 0:
                    shutil.rmtree(shared / "run")
    finally:
        os.kill(racer, 9)
        mallory.do("wait", racer)


# --- a bus that is none ---


def _blocking(address: str, **options: Any) -> None:
    ipcbus_client.connect(address, **options)


def _aio(address: str, **options: Any) -> None:
    import asyncio

    async def body() -> None:
        await aio.connect(address, **options)

    asyncio.run(body())


@pytest.mark.parametrize("connect", [_blocking, _aio], ids=["blocking", "aio"])
def test_a_socket_squatted_before_the_client_connects(connect: Callable[..., None], shared: Path, mallory: Stranger) -> None:
    """The kernel says who listens, and a stranger hears not even HELLO."""
    with mallory.do("listen", f"{shared}/bus.sock") as listener:
        listener.settimeout(START_S)
        with pytest.raises(ipcbus_client.ConnectError, match=f"uid {MALLORY} listens on .* refusing to talk to it"):
            connect(f"unix:{shared}/bus.sock", timeout=None)
        with listener.accept()[0] as heard:
            assert heard.recv(1000) == b""


def test_a_socket_squatted_before_the_command_line_connects(shared: Path, alice: Stranger, mallory: Stranger) -> None:
    with mallory.do("listen", f"{shared}/bus.sock"):
        tried = alice.run(f"ipcbus pub room.door 1 --address unix:{shared}/bus.sock")
    assert tried.code == 3
    assert f"uid {MALLORY} listens on" in tried.err


def test_a_secret_file_of_another_user(shared: Path, bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """Who proves a secret that mallory knows would trust whatever mallory has listen there."""
    mallory.do("write", f"{shared}/bus.secret", "x" * 32)
    tried = alice.run(f"ipcbus ping --address {bus.addresses[1]} --secret-file {shared}/bus.secret")
    assert tried.code not in (0, None)
    assert f"uid {MALLORY}" in tried.err
    tried = mallory.run(f"ipcbus ping --address {bus.addresses[1]} --secret-file {bus.secret_file}")
    assert tried.code not in (0, None)
    assert "Permission denied" in tried.err
    with pytest.raises(PermissionError):
        mallory.do("read", bus.secret_file)
