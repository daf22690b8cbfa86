"""Where a bus puts its socket: not where others may enter it, put another in its place, or lead it elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.daemons import run_ipcbusd


def refused(*arguments: str, **env: str) -> str:
    done = run_ipcbusd(*arguments, **env)
    assert done.returncode == 4, done.stderr
    return done.stderr


def test_the_runtime_directory_of_a_user_is_for_that_user_alone(short_dir: Path) -> None:
    place = short_dir / "ipcbus"
    place.mkdir()
    place.chmod(0o711)
    assert f"chmod 700 {place}" in refused(XDG_RUNTIME_DIR=str(short_dir))
    assert not list(place.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give a link to another user")
def test_no_link_of_somebody_else_leads_to_the_socket_or_the_secret(short_dir: Path) -> None:
    place = short_dir / "place"
    place.mkdir(0o700)
    link = short_dir / "link"
    link.symlink_to(place)
    os.chown(link, 4711, -1, follow_symlinks=False)
    assert f"{link} belongs to uid 4711" in refused(f"--listen=unix:{link}/bus.sock")
    assert f"{link} belongs to uid 4711" in refused("--listen=tcp:127.0.0.1:0", "--secret-file", f"{link}/bus.secret")
    assert not list(place.iterdir())
