"""Files that decide something are read only where nobody else can have written them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipcbus.daemon.places import PlaceError
from ipcbus.daemon.trusted_files import list_trusted, read_trusted

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give files to other users")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "place" / "file.toml"
    path.parent.mkdir()
    path.write_bytes(b"12345678")
    return path


def refused(path: Path, max_bytes: int = 8) -> str:
    with pytest.raises(PlaceError) as caught:
        read_trusted(str(path), max_bytes=max_bytes)
    return str(caught.value)


def test_our_own_file(file: Path) -> None:
    assert read_trusted(str(file), max_bytes=8) == b"12345678"
    assert read_trusted(str(file), max_bytes=9) == b"12345678"
    assert "more than 7 bytes" in refused(file, 7)
    with pytest.raises(FileNotFoundError):
        read_trusted(str(file) + "x", max_bytes=8)
    with pytest.raises(FileNotFoundError):
        read_trusted(str(file.parent / "nowhere" / "x"), max_bytes=8)


@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_others_that_may_write(file: Path, bit: int) -> None:
    file.chmod(0o600 | bit)
    mode = f"{0o600 | bit:04o}"
    assert refused(file) == f"{file} has mode {mode}, so others could change what is there: chmod go-w {file}, or use another place"
    file.chmod(0o600)
    file.parent.chmod(0o700 | bit)
    assert refused(file).startswith(f"{file.parent} has mode")
    file.parent.chmod(0o1700 | bit)
    assert read_trusted(str(file), max_bytes=8), "in a sticky directory nobody can replace what is not theirs"
    file.parent.chmod(0o755)
    assert read_trusted(str(file), max_bytes=8), "others may read"


def test_what_is_no_file_or_a_link(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert "symbolic link" in refused(link)
    assert "not a regular file" in refused(file.parent)
    os.mkfifo(file.with_name("pipe"))
    assert "not a regular file" in refused(file.with_name("pipe"))
    (file.parent.parent / "way").symlink_to(file.parent)
    assert read_trusted(str(file.parent.parent / "way" / file.name), max_bytes=8), "a link of ours on the way to it is good"
    (file.parent.parent / "round").symlink_to(file.parent.parent / "round")
    with pytest.raises(OSError, match="symbolic link"):
        read_trusted(str(file.parent.parent / "round" / file.name), max_bytes=8)


@needs_root
def test_what_belongs_to_others(file: Path) -> None:
    os.chown(file, 4242, 4242)
    assert refused(file) == f"{file} belongs to uid 4242, who could change what is there; it must belong to root"
    assert read_trusted(str(file), max_bytes=8, uids={4242})
    os.chown(file, 0, 0)
    assert read_trusted(str(file), max_bytes=8, uids={4242}), "root may change everything anyway"
    os.chown(file.parent, 4242, 0)
    assert refused(file).startswith(f"{file.parent} belongs to uid 4242")
    file.parent.chmod(0o1777)
    assert refused(file).startswith(f"{file.parent} belongs to uid 4242"), "the owner of a sticky directory replaces everything in it"


@needs_root
def test_a_link_of_others_on_the_way(file: Path) -> None:
    way = file.parent.parent / "way"
    way.symlink_to(file.parent)
    os.lchown(way, 4242, 4242)
    assert refused(way / file.name).startswith(f"{way} belongs to uid 4242")
    assert refused(way / ".." / file.parent.name / file.name).startswith(f"{way} belongs to uid 4242")


@needs_root
def test_where_a_link_leads_is_looked_at_too(file: Path) -> None:
    """A link of ours through a directory of others."""
    theirs = file.parent.parent / "theirs"
    theirs.mkdir()
    os.chown(theirs, 4242, 4242)
    (theirs / "place").mkdir()
    (theirs / "place" / "file.toml").write_text("")
    way = file.parent.parent / "way"
    way.symlink_to("theirs/place")
    assert refused(way / "file.toml").startswith(f"{way.parent}/theirs belongs to uid 4242")


def test_a_directory(file: Path) -> None:
    for name in ("b.toml", "a.toml", "é.toml", "B.toml", ".hidden.toml", "a.toml~", "note.txt"):
        (file.parent / name).write_text("")
    directory = str(file.parent)
    assert list_trusted(directory, suffix=".toml") == ["B.toml", "a.toml", "b.toml", "file.toml", "é.toml"]
    assert list_trusted(directory + "/nowhere", suffix=".toml") == []
    for mode in (0o770, 0o707, 0o1777):
        file.parent.chmod(mode)
        with pytest.raises(PlaceError, match="so others could change what is there"):
            list_trusted(directory, suffix=".toml")
    with pytest.raises(NotADirectoryError):
        list_trusted(str(file), suffix=".toml")
