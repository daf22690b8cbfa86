"""ADMIN.md, word by word: its files are written, and its commands run as the users that it names, in a directory that stands for /."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import ROOT, wait_until
from tests.security.people import Program, Stranger, needs_users

pytestmark = needs_users

GUIDE = (ROOT / "ipcbus" / "ADMIN.md").read_text()
#: Blocks in the order in which they stand: the language, and what is in it.
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
USERS = {"root": 0, "ipcbus": 46200, "lights": 46201, "heating": 46202, "olga": 46203, "guest": 46204}
OPERATORS = 46300


class Machine:
    """What ADMIN.md calls the machine: everything that it says lies in / lies in *root*."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.people = {name: Stranger(uid, groups=(OPERATORS,) if name == "olga" else ()) for name, uid in USERS.items()}
        users = {name: uid for name, uid in USERS.items() if name != "root"}
        for person in self.people.values():
            person.do("believe", users, {"operators": OPERATORS})
        self.units: dict[str, Program] = {}
        self.environment = {
            "IPCBUS_ADDRESS": f"unix:{root}/run/ipcbus/system.sock",
            "IPCBUS_BUS_UID": str(USERS["ipcbus"]),  # what at /run/ipcbus itself needs no saying
            "IPCBUS_CONFIG": f"{root}/etc/ipcbus/ipcbusd.toml",
            "IPCBUS_POLICY_DIR": f"{root}/etc/ipcbus/policy.d",
        }

    def here(self, text: str) -> str:
        """*text* with the places of this machine."""
        return re.sub(r"(?<![\w.])/(etc/ipcbus|etc/systemd|run/ipcbus|usr/local/lib)", rf"{self.root}/\1", text)

    def write(self, block: str) -> None:
        """The file that *block* is; its first line says which."""
        path = Path(self.here(block.partition("\n")[0].removeprefix("# ")))
        for directory in (*reversed(path.parents), path.parent):
            if str(directory).startswith(self.root) and not directory.exists():
                directory.mkdir(mode=0o755)
        path.write_text(self.here(block))

    def run(self, who: str, line: str) -> str:
        """What a command prints."""
        words = shlex.split(line)
        if words[0] == "systemctl":
            act = {"enable": self.start, "reload": self.reload}[words[1]]
            for unit in words[2:]:
                if unit != "--now":
                    act(unit)
            return ""
        if words[0] in ("useradd", "groupadd", "usermod"):
            assert words[-1] in {*USERS, "operators"}
            return ""
        program = self.people[who].run(self.here(line), **self.environment)
        assert "Traceback" not in program.err
        return (program.out + program.err).replace(self.root, "")

    def start(self, unit: str) -> None:
        """As systemd does, as far as the guide needs it."""
        service = configparser.RawConfigParser()
        service.optionxform = str  # type: ignore[method-assign,assignment]
        service.read(f"{self.root}/etc/systemd/system/{unit}.service")
        said = service["Service"]
        if "RuntimeDirectory" in said:
            place = f"{self.root}/run/{said['RuntimeDirectory']}"
            os.makedirs(place, int(said["RuntimeDirectoryMode"], 8))
            os.chown(place, USERS[said["User"]], USERS[said["User"]])
        command = said["ExecStart"].replace("/usr/local/bin/", "").replace("/usr/bin/", "")
        name, _, value = said.get("Environment", f"IPCBUS_ADDRESS={self.environment['IPCBUS_ADDRESS']}").partition("=")
        extra = {name: value}
        extra |= {key: self.environment[key] for key in ("IPCBUS_BUS_UID", "IPCBUS_POLICY_DIR")}
        self.units[unit] = program = self.people[said["User"]].start(command, **extra)
        serving = f"workshop.{unit}"
        if unit == "ipcbus":
            wait_until(lambda: "listening on" in program.err, "the bus should start", 20)
        else:
            wait_until(lambda: serving in self.run("guest", "ipcbus names"), f"{unit} should serve: {program.err}", 20)

    def reload(self, unit: str) -> None:
        program = self.units[unit]
        os.kill(program.pid, signal.SIGHUP)
        wait_until(lambda: "SIGHUP: there is a new policy" in program.err, f"it should be logged: {program.err}", 20)

    def close(self) -> None:
        """End what was started, the bus last."""
        for program in reversed(self.units.values()):
            os.kill(program.pid, signal.SIGKILL)
            program.wait()
        for person in self.people.values():
            person.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as root:
        os.chmod(root, 0o755)
        made = Machine(root)
        yield made
        made.close()


def test_from_end_to_end(machine: Machine) -> None:
    sessions = 0
    for language, block in BLOCKS:
        if language != "console":
            machine.write(block)
            continue
        sessions += 1
        for who, line, expected in re.findall(r"^(\w+)[#$] (.*)\n((?:(?!\w+[#$] ).*\n)*)", block, re.MULTILINE):
            printed = machine.run(who, line)
            pattern = re.escape(expected).replace("…", ".*")
            assert re.fullmatch(pattern, printed), f"{who}: {line}\n{printed}"
    assert sessions >= 6
    assert not machine.units["lights"].err, "a service that works says nothing"
    assert "Traceback" not in machine.units["ipcbus"].err


def test_every_user_and_file_is_one_of_the_guide() -> None:
    assert set(re.findall(r"^(\w+)[#$] ", GUIDE, re.MULTILINE)) == {"root", "olga", "guest"}
    files = [block.partition("\n")[0] for language, block in BLOCKS if language != "console"]
    assert all(re.fullmatch(r"# /[\w./-]+", name) for name in files)
    assert len(files) == len(set(files)) == 8
