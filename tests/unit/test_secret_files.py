"""The files of secrets: made whole or not at all, read only where nobody else can have read or written them."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ipcbus.daemon import secret_file
from ipcbus.daemon.places import PlaceError
from ipcbus.daemon.secret_file import check_secrets, load_secrets


@pytest.fixture
def place(short_dir: Path) -> Path:
    (short_dir / "named").mkdir(0o700)
    return short_dir


def put(path: Path, secret: bytes, mode: int = 0o600) -> Path:
    path.touch(0o600)
    path.write_bytes(secret)
    path.chmod(mode)
    return path


def load(place: Path) -> dict[str, bytes]:
    return dict(load_secrets(f"{place}/bus.secret", f"{place}/named"))


def test_the_own_secret_is_made_once_and_nothing_is_left_beside_it(place: Path) -> None:
    first = load_secrets(f"{place}/bus.secret", None)
    assert first == load_secrets(f"{place}/bus.secret", None)
    assert stat.S_IMODE((place / "bus.secret").stat().st_mode) == 0o600
    assert sorted(os.listdir(place)) == ["bus.secret", "named"]


@pytest.mark.parametrize("when", ["before it was whole", "before it was linked", "before the draft was removed"])
def test_what_a_killed_daemon_left_is_used_or_removed(place: Path, when: str) -> None:
    draft = put(place / "bus.secret.new", b"half" if when == "before it was whole" else b"w" * 32)
    if when == "before the draft was removed":
        os.link(draft, place / "bus.secret")
    secret = load(place)["default"]
    assert (place / "bus.secret").read_bytes() == secret
    assert (secret == b"w" * 32) == (when == "before the draft was removed")
    assert not draft.exists()


def test_daemons_that_start_together_have_the_same_secret(place: Path) -> None:
    found: list[bytes] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        found.append(load(place)["default"])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert not (place / "bus.secret.new").exists()


def test_what_is_put_there_meanwhile_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def random(size: int) -> bytes:
        put(place / "bus.secret", b"t" * 32)
        return b"r" * size

    monkeypatch.setattr(secret_file.os, "urandom", random)
    assert load(place)["default"] == b"t" * 32


@pytest.mark.parametrize("what", ["link", "directory", "readable"])
def test_a_draft_that_is_not_ours_is_not_used(place: Path, what: str) -> None:
    draft = place / "bus.secret.new"
    if what == "link":
        draft.symlink_to(put(place / "elsewhere", b"x" * 32))
    elif what == "directory":
        draft.mkdir()
    else:
        put(draft, b"", 0o644)
    with pytest.raises(PlaceError, match=r"bus\.secret\.new"):
        load(place)
    assert not (place / "bus.secret").exists()


def test_named_secrets(place: Path) -> None:
    put(place / "named" / "panel.secret", b"p" * 32)
    put(place / "named" / "home.lights.secret", b"l" * 32)
    put(place / "named" / ".hidden.secret", b"short", 0o666)
    put(place / "named" / "README", b"what this is", 0o644)
    secrets = load(place)
    assert set(secrets) == {"default", "panel", "home.lights"}
    assert (secrets["panel"], secrets["home.lights"]) == (b"p" * 32, b"l" * 32)


def test_they_may_lie_beside_the_own_one(place: Path) -> None:
    put(place / "default.secret", b"d" * 32)
    put(place / "panel.secret", b"p" * 32)
    assert dict(load_secrets(f"{place}/default.secret", str(place))) == {"default": b"d" * 32, "panel": b"p" * 32}


@pytest.mark.parametrize(
    ("name", "secret", "mode", "says"),
    [
        ("panel", b"p" * 31, 0o600, "does not hold 32 bytes"),
        ("panel", b"p" * 33, 0o600, "does not hold 32 bytes"),
        ("panel", b"p" * 32, 0o640, "has mode 0640"),
        ("panel", b"o" * 32, 0o600, "the same secret as that of 'other'"),
        ("default", b"p" * 32, 0o600, "what the bus's own secret is called"),
        ("a b", b"p" * 32, 0o600, "use A-Z"),
        ("n" * 129, b"p" * 32, 0o600, "use A-Z"),
    ],
)
def test_secrets_that_are_refused(place: Path, name: str, secret: bytes, mode: int, says: str) -> None:
    put(place / "named" / "other.secret", b"o" * 32)
    path = put(place / "named" / f"{name}.secret", secret, mode)
    with pytest.raises(PlaceError) as caught:
        load(place)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(PlaceError) as checked:
        check_secrets(f"{place}/bus.secret", f"{place}/named")
    assert str(checked.value) == str(caught.value), "a check says what a start would"


@pytest.mark.parametrize("what", ["secret", "directory of it", "directory of others"])
def test_a_check_looks_where_a_start_does(place: Path, what: str) -> None:
    own = put(place / "bus.secret", b"b" * (31 if what == "secret" else 32))
    if what != "secret":
        (place if what == "directory of it" else place / "named").chmod(0o755)
    with pytest.raises(PlaceError) as caught:
        load(place)
    with pytest.raises(PlaceError) as checked:
        check_secrets(str(own), f"{place}/named")
    assert str(checked.value) == str(caught.value)


def test_a_check_makes_nothing(short_dir: Path) -> None:
    check_secrets(f"{short_dir}/bus.secret", f"{short_dir}/named")
    check_secrets(f"{short_dir}/missing/bus.secret", None)
    assert os.listdir(short_dir) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_belongs_to_the_user_whose_bus_it_is_says_nothing_to_root(place: Path) -> None:
    own = put(place / "bus.secret", b"b" * 32)
    put(place / "named" / "panel.secret", b"p" * 32)
    for path in (own, place / "named", place / "named" / "panel.secret"):
        os.chown(path, 4242, 4242)
    check_secrets(str(own), f"{place}/named")
    with pytest.raises(PlaceError, match="belongs to uid 4242"):
        load(place)


def test_no_link_is_followed_to_a_named_secret(place: Path) -> None:
    (place / "named" / "panel.secret").symlink_to(put(place / "elsewhere", b"p" * 32))
    with pytest.raises(PlaceError, match="symbolic link"):
        load(place)


def test_there_are_so_many_at_most(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_file, "SECRETS_MAX", 3)
    for number in range(3):
        put(place / "named" / f"n{number}.secret", bytes([number]) * 32)
        assert len(load(place)) == number + 2
    put(place / "named" / "n3.secret", b"3" * 32)
    with pytest.raises(PlaceError, match="has 4 secrets, more than 3"):
        load(place)


def test_a_directory_that_is_missing_is_made_for_us_alone(short_dir: Path) -> None:
    assert set(load(short_dir)) == {"default"}
    assert stat.S_IMODE((short_dir / "named").stat().st_mode) == 0o700
