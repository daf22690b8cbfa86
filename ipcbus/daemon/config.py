"""The configuration in force: defaults < file < environment < flags, checked as a whole, with every error and not only the first.

Owns the merging, the messages and the printing. Must not know what the options do; ``options`` has the rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..broker.lanes import OUTPUT_HIGH_BYTES
from ..protocol.addresses import Address, AddressError, TcpAddress, UnixAddress, default_address, default_secret_path
from ..protocol.limits import ENVELOPE_MAX_BYTES, Limits
from .limits import CONFIG_FILE_MAX_BYTES
from .options import BY_NAME, OPTIONS, SYSTEM_DEFAULTS, Option
from .places import CONFIG_NAME, POLICY_NAME, PlaceError, config_dir, runtime_dir
from .policy_files import PolicyFiles, read_policy
from .trusted_files import read_trusted

_LIMITS = "limits."
_LAYERS = ("default", "file", "environment", "flag")  #: the first word of a source; later ones win


class ConfigError(Exception):
    """The configuration cannot be used; ``errors`` has a line for each thing that is wrong."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__(*errors)
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class Config:
    """Every option's value. ``sources`` says where each came from, ``path`` which file was read (None: there is none)."""

    bus: str
    kind: str
    listen: tuple[Address, ...]
    poller: str
    log_level: str
    log_format: str
    secret_file: str | None  #: None: nowhere, and no listener needs it
    secret_dir: str | None  #: of the secrets that have names
    socket_mode: int
    socket_group: int | None
    policy_file: str | None
    policy_dir: tuple[str, ...]
    policy: PolicyFiles  #: what is in them
    exit_idle_s: float | None
    drain_s: float
    limits: Limits
    path: str | None
    values: Mapping[str, Any]
    sources: Mapping[str, str]

    @property
    def open_to_others(self) -> bool:
        """Whether others than the bus's user may connect to its Unix sockets, as far as the kernel is concerned."""
        return bool(self.socket_mode & 0o022)

    def oddities(self) -> list[str]:
        """What is legal in the policy and yet not what somebody meant, for people."""
        lines = [*self.policy.warnings, *self.not_there()]
        rule = self.policy.kept_out(os.geteuid())
        if rule is not None and not self.open_to_others and any(isinstance(address, UnixAddress) for address in self.listen):
            kept_out = f"socket_mode {self.socket_mode:04o} keeps them from the socket"
            lines.append(f"{rule} lets others connect, but {kept_out}; with 0666 the policy decides alone")
        return lines

    def not_there(self) -> list[str]:
        """The drop-in directories that somebody named and that do not exist, for people. Those of every system bus need not."""
        source = self.sources["policy_dir"]
        missing = [directory for directory in self.policy_dir if source != "default" and not os.path.lexists(directory)]
        return [f"policy_dir ({source}): there is no directory {directory}, and so no rules in it" for directory in missing]

    @property
    def directory_mode(self) -> int:
        """Of a directory that has to be made: on a system bus everybody has to get to the socket in it."""
        return 0o755 if self.kind == "system" else 0o700

    @property
    def needs_secret(self) -> bool:
        """Whether a TCP listener is configured (H-6)."""
        return any(isinstance(address, TcpAddress) for address in self.listen)


def load(
    *, flags: Mapping[str, Any], environ: Mapping[str, str], path: str | None = None, uids: Collection[int] | None = None
) -> Config:
    """Put the configuration together. *flags* has option names with text (lists of texts for lists); *path* is ``--config``.

    Raises ConfigError. Reads the configuration file, the policy's files and the user database, changes nothing. Files must be of root or
    of *uids* (None: of the user of this process), and nobody else may be able to write to them.
    """
    errors: list[str] = []
    values: dict[str, Any] = {option.name: option.default for option in OPTIONS}
    sources = dict.fromkeys(values, "default")
    named = bool(path or environ.get("IPCBUS_CONFIG"))
    path = _find_file(path, environ, flags)
    if path is not None:
        for name, value in _read_file(path, uids, errors):
            _take(values, sources, errors, name, value, f"{path}: {name}", f"file {path}", from_text=False)
    for option in OPTIONS:
        if option.env is not None and environ.get(option.env):
            _take(values, sources, errors, option.name, environ[option.env], option.env, f"environment {option.env}", from_text=True)
    for name, value in flags.items():
        if value is not None:
            flag = BY_NAME[name].flag or name
            _take(values, sources, errors, name, value, flag, f"flag {flag}", from_text=type(value) is str)
    if _LAYERS.index(sources["bus"].partition(" ")[0]) > _LAYERS.index(sources["listen"].partition(" ")[0]):
        # Who names another bus does not mean the addresses that were set for the first; clients find the bus by the same rule.
        values["listen"], sources["listen"] = None, "default"
    if values["kind"] == "system":
        values.update({name: value for name, value in SYSTEM_DEFAULTS.items() if sources[name] == "default"})
    group = _group_id(values["socket_group"], sources["socket_group"], errors)
    if values["policy_file"] is None and (values["kind"] == "system" or not named):  # who names another configuration names its policy too
        values["policy_file"] = _if_there(os.path.join(config_dir(values["kind"]), POLICY_NAME))
    _fill_in(values, errors)
    policy = read_policy(values["policy_file"], values["policy_dir"], uids, errors)
    limits = Limits(**{name.removeprefix(_LIMITS): value for name, value in values.items() if name.startswith(_LIMITS)})
    errors.extend(conflicts(limits))
    if errors:
        raise ConfigError(errors)
    rest = {name: value for name, value in values.items() if not name.startswith(_LIMITS)}
    return Config(**{**rest, "socket_group": group}, policy=policy, limits=limits, path=path, values=values, sources=sources)


def _take(
    values: dict[str, Any], sources: dict[str, str], errors: list[str], name: str, value: Any, place: str, source: str, *, from_text: bool
) -> None:
    """Take one given value, or say what is wrong with it."""
    option = BY_NAME.get(name)
    if option is None:
        errors.append(f"{place}: there is no such option{_suggestion(name)}")
        return
    try:
        values[name] = option.type.from_text(value) if from_text else option.type.from_toml(value)
    except ValueError as error:
        errors.append(f"{place}: {option.explain(value, error)}")
    else:
        sources[name] = source


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, BY_NAME, 1)
    if not near:
        near = [known for known in BY_NAME if known.removeprefix(_LIMITS) == name.removeprefix(_LIMITS)]
    return f"; did you mean {near[0]}?" if near else "; `ipcbusd --print-config` lists them all"


def _find_file(path: str | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> str | None:
    """The file to read: --config, $IPCBUS_CONFIG (both must exist; /dev/null is none), or the user's or the system's, if there is one."""
    given = path or environ.get("IPCBUS_CONFIG")
    if given:
        return given if given != os.devnull else None
    kind = flags.get("kind") or environ.get("IPCBUS_KIND") or BY_NAME["kind"].default
    return _if_there(os.path.join(config_dir(kind), CONFIG_NAME))


def _if_there(path: str) -> str | None:
    """*path* where something has this name, be it a link that leads nowhere, or where that is not to be seen: who reads it says why."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return path


def _read_file(path: str, uids: Collection[int] | None, errors: list[str]) -> list[tuple[str, Any]]:
    """The options of a TOML file; tables other than ``limits`` come out under their dotted names and are refused as unknown."""
    import tomllib

    try:
        content = tomllib.loads(read_trusted(path, max_bytes=CONFIG_FILE_MAX_BYTES, uids=uids).decode())
    except PlaceError as error:
        errors.append(str(error))
        return []
    except OSError as error:
        errors.append(f"{path}: {error.strerror}")
        return []
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are some, and so is a number of too many digits
        errors.append(f"{path}: not TOML: {error}")
        return []
    except RecursionError:
        errors.append(f"{path}: lists or tables are nested too deeply")
        return []
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        if type(value) is dict:
            found.extend((f"{name}.{key}", item) for key, item in value.items())
        else:
            found.append((name, value))
    return found


def _fill_in(values: dict[str, Any], errors: list[str]) -> None:
    """Work out what depends on other options. A bus name that was refused is the default here, so that no second error comes of it."""
    if values["policy_dir"] is None:
        values["policy_dir"] = ()
    try:
        if values["listen"] is None:
            values["listen"] = (default_address(runtime_dir(values["kind"]), values["bus"]),)
    except (AddressError, PlaceError) as error:
        errors.append(f"listen: {error}")
        return
    try:
        if values["secret_file"] is None:
            values["secret_file"] = default_secret_path(runtime_dir(values["kind"]), values["bus"])
    except PlaceError as error:
        if any(isinstance(address, TcpAddress) for address in values["listen"]):
            errors.append(f"secret_file: {error}")
    paths = [_real(address.path) for address in values["listen"] if isinstance(address, UnixAddress)]
    ports = [str(address) for address in values["listen"] if isinstance(address, TcpAddress) and address.port]
    errors.extend(f"listen: {twice} is given twice" for twice in sorted({x for x in paths + ports if (paths + ports).count(x) > 1}))


def _real(path: str) -> str:
    """*path* without links; as it is where somebody changes one of them just now."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def conflicts(limits: Limits) -> list[str]:
    """What is wrong with limits that are good one by one."""
    # A peer gets publications up to OUTPUT_HIGH_BYTES, and all that is retained may wait for its credit; a reply of the largest size must
    # fit beside them, or its reader is closed.
    errors = []
    least = OUTPUT_HIGH_BYTES + limits.max_retained_bytes + limits.max_payload_bytes + ENVELOPE_MAX_BYTES
    if limits.max_output_bytes < least:
        others = f"limits.max_payload_bytes of {limits.max_payload_bytes} and limits.max_retained_bytes of {limits.max_retained_bytes}"
        errors.append(f"limits.max_output_bytes: {limits.max_output_bytes} is too little for {others}: give it at least {least}")
    for name in ("max_program_bytes", "max_user_bytes", "max_queued_bytes"):  # whom one message of the largest size costs the connection
        value = getattr(limits, name)
        if value < limits.max_frame_bytes:
            others = f"limits.max_payload_bytes of {limits.max_payload_bytes}"
            errors.append(f"limits.{name}: {value} is too little for {others}: give it at least {limits.max_frame_bytes}")
    return errors


def _group_id(name: str | None, source: str, errors: list[str]) -> int | None:
    if name is None:
        return None
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        errors.append(f"socket_group ({source}): there is no group {name!r}")
        return None


def as_toml(config: Config) -> str:
    """The values in force as a TOML file with where each came from; read back, it gives the same values."""
    lines = [f"# {_in_a_comment(config.path or 'no configuration file')}"]
    table = False
    for option in OPTIONS:
        if option.name.startswith(_LIMITS) and not table:
            table = True
            lines += ["", "[limits]"]
        lines.append(_line(option, config.values[option.name], config.sources[option.name]))
    return "\n".join(lines) + "\n"


def _in_a_comment(text: str) -> str:
    """*text* without what would end the comment or make it something that is not TOML."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _line(option: Option, value: Any, source: str) -> str:
    key = option.name.removeprefix(_LIMITS)
    if value is None:
        return f"# {key} =  # not set: {option.doc}"
    return f"{key} = {option.type.to_toml(value)}  # {_in_a_comment(source)}: {option.doc}"


def difference(old: Config, new: Config) -> tuple[list[Option], list[Option]]:
    """What changed between two configurations: the options that can change while the bus runs, and those that need a restart."""
    changed = [option for option in OPTIONS if old.values[option.name] != new.values[option.name]]
    return [option for option in changed if option.live], [option for option in changed if not option.live]
