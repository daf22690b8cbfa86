"""Directories of sockets and secrets: nobody else can put another one there, and those of secrets nobody else enters."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ipcbus.daemon import resources
from ipcbus.daemon.directories import prepare_directory
from ipcbus.daemon.places import PlaceError


def refused(path: Path, *, private: bool = False) -> str:
    with pytest.raises(PlaceError) as caught:
        prepare_directory(str(path), private=private)
    return str(caught.value)


def test_what_is_missing_is_made_for_us_alone(short_dir: Path) -> None:
    prepare_directory(f"{short_dir}/a/b", private=True)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (short_dir / "a", short_dir / "a" / "b")] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o740, 0o704, 0o755])
def test_who_may_look_may_not_write_and_where_a_secret_is_nobody_may_look(short_dir: Path, mode: int) -> None:
    place = short_dir / "place"
    place.mkdir()
    place.chmod(mode)
    prepare_directory(str(place))
    assert refused(place, private=True) == (
        f"{place} has mode {mode:04o}, and what is in it is for its owner alone: chmod 700 {place}, or use another directory"
    )
    place.chmod(0o700)
    prepare_directory(str(place), private=True)


@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_nobody_may_put_another_in_its_place_at_any_step_of_the_way(short_dir: Path, bit: int) -> None:
    place = short_dir / "a" / "b" / "c"
    place.mkdir(parents=True, mode=0o700)
    for each in (place, place.parent, place.parent.parent):
        before = stat.S_IMODE(each.stat().st_mode)
        each.chmod(before | bit)
        assert str(each) in refused(place)
        each.chmod(before)
    prepare_directory(str(place))


@pytest.mark.parametrize("private", [False, True])
def test_what_is_no_directory_is_not_made_one(short_dir: Path, *, private: bool) -> None:
    place = short_dir / "place"
    place.touch(0o644)
    assert refused(place, private=private) == f"{place} is not a directory"


@pytest.mark.parametrize("private", [False, True])
def test_nobody_is_told_to_close_a_directory_for_everybody(short_dir: Path, *, private: bool) -> None:
    place = short_dir / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    assert refused(place, private=private) == (
        f"{place} has mode 1777, so others can put files into it: use a directory of your own below it"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give a link to another user")
def test_a_link_of_somebody_else_is_not_followed(short_dir: Path) -> None:
    place = short_dir / "place"
    place.mkdir(0o700)
    link = short_dir / "link"
    link.symlink_to(place)
    prepare_directory(f"{link}/below")
    os.chown(link, 4711, -1, follow_symlinks=False)
    assert str(link) in refused(link)
    assert str(link) in refused(link / "below")


def test_where_memory_cannot_be_kept_out_of_core_dumps_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(resources, "open", refuse, raising=False)
    resources.keep_memory_out_of_core_dumps()
    assert "LimitCORE=0" in caplog.text
