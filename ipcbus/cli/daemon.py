"""``ipcbusd``: flags in, an exit code out. Everything it starts is in ``ipcbus.daemon``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..daemon.config import Config, ConfigError, as_toml, load
from ..daemon.namespaces import hides_others, maps_some_only
from ..daemon.options import OPTIONS
from ..daemon.policy_files import not_of_this_machine
from .text import prepare_streams

OK, INTERNAL, USAGE, ALREADY_RUNNING, CANNOT_LISTEN = 0, 1, 2, 3, 4

_METAVARS = {"listen": "ADDRESS", "drain_s": "SECONDS", "exit_idle_s": "SECONDS"}

_EPILOG = """\
Defaults < configuration file < environment < flags. The file is --config, $IPCBUS_CONFIG or ipcbusd.toml in the user's configuration
directory for ipcbus; --print-config shows every option, its value and where that came from.

signals:
  SIGTERM  stop: say BYE, wait up to drain_s for what peers are due; once more: stop at once
  SIGINT   the same, but wait 1 s at most
  SIGHUP   read the configuration and the policy again

exit codes:
  0 stopped in order   1 a fault of the bus   2 usage or configuration   3 already running   4 cannot listen

examples:
  ipcbusd                                          the user's bus, on its default socket
  ipcbusd --bus lab --listen unix:/tmp/mine/lab.sock
  ipcbusd --listen tcp:127.0.0.1:0                 loopback only, and only with the secret
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipcbusd",
        description="The daemon of ipcbus, a message bus for the programs of one machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="configuration file (TOML) [IPCBUS_CONFIG]")
    for option in OPTIONS:
        if option.flag is not None:
            default = "" if option.default is None else f" (default {option.type.to_toml(option.default).strip(chr(34))})"
            text = f"{option.doc}{default} [{option.env}]".replace("%", "%%")
            repeats = option.name in ("listen", "policy_dir")
            repeatable: dict[str, Any] = {"action": "append", "help": text + "; repeatable"} if repeats else {"help": text}
            parser.add_argument(
                option.flag, dest=option.name, metavar=_METAVARS.get(option.name, option.name.rpartition("_")[2].upper()), **repeatable
            )
    parser.add_argument("--check-config", action="store_true", help="say everything that is wrong with the configuration, and exit")
    parser.add_argument("--print-config", action="store_true", help="print the configuration in force as TOML, and exit")
    ready = "when listening, write a line READY ADDRESS for each address to descriptor N and close it"
    parser.add_argument("--ready-fd", metavar="N", type=int, help=ready)
    parser.add_argument("--version", action="version", version=f"ipcbusd {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop; returns the exit code (see --help)."""
    prepare_streams()
    given = _parser().parse_args(arguments)
    flags = {option.name: getattr(given, option.name) for option in OPTIONS if option.flag is not None}

    if (os.getuid(), os.getgid()) != (os.geteuid(), os.getegid()):
        # Who started it chose its environment, and where Python finds modules: it is too late to trust anything.
        who = f"uid {os.getuid()} with effective {os.geteuid()}, gid {os.getgid()} with effective {os.getegid()}"
        print(f"ipcbusd: does not run setuid or setgid ({who}): start it as the user whose bus it is", file=sys.stderr)
        return USAGE

    def configure() -> Config:
        config = load(flags=flags, environ=os.environ, path=given.config)
        if errors := not_of_this_machine(config.policy, os.geteuid(), maps_some_only(), units_hidden=hides_others()):
            raise ConfigError(errors)
        return config

    try:
        config = configure()
    except ConfigError as error:
        for line in error.errors:
            print(f"ipcbusd: {line}", file=sys.stderr)
        return USAGE
    if given.print_config:
        return _write(as_toml(config))
    if given.check_config:
        if wrong := _secrets_refused(config):
            print(f"ipcbusd: {wrong}", file=sys.stderr)
            return USAGE
        return _write("".join(f"ipcbusd: {line}\n" for line in (*_warnings(config), _verdict(config))))
    from ..daemon import logs
    from ..daemon.lifecycle import Daemon
    from ..daemon.listeners import AlreadyRunningError, ListenError
    from ..daemon.places import PlaceError

    logs.set_up(config.log_level, config.log_format)
    log = logging.getLogger("ipcbus.daemon")
    daemon = None
    try:
        daemon = Daemon(config, configure)
        addresses = daemon.start()
        if given.ready_fd is not None:
            _tell_ready(given.ready_fd, addresses)
        daemon.run()
        return OK
    except AlreadyRunningError as error:
        log.error("%s", error)
        return ALREADY_RUNNING
    except (ListenError, PlaceError) as error:
        log.error("%s", error)
        return CANNOT_LISTEN
    except Exception:
        log.exception("fault of the bus; it stops")
        return INTERNAL
    finally:
        if daemon is not None:
            daemon.close()


def _warnings(config: Config) -> list[str]:
    """What is legal in the policy and yet not what somebody meant."""
    from ..policy.lint import lint

    return [f"warning: {line}" for line in (*config.oddities(), *lint(config.policy.rules))]


def _secrets_refused(config: Config) -> str | None:
    """Why the bus would not start with the secrets that are there, None where it would."""
    from ..daemon.places import PlaceError
    from ..daemon.secret_file import check_secrets

    if not config.needs_secret:
        return None
    assert config.secret_file is not None
    try:
        check_secrets(config.secret_file, config.secret_dir, directory_mode=config.directory_mode)
    except PlaceError as error:
        return str(error)
    return None


def _verdict(config: Config) -> str:
    """That the configuration is good, and of what it is made."""
    policy = config.policy
    return f"the configuration is good ({config.path or 'no file'}; {policy.described()})"


def _write(text: str) -> int:
    """Print *text*. A reader that left has what it wanted, as in ``| head -1``."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
        return OK
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more, which cannot fail there
        if isinstance(error, BrokenPipeError):
            return OK
        print(f"ipcbusd: {error}", file=sys.stderr)
        return INTERNAL


def _tell_ready(descriptor: int, addresses: list[str]) -> None:
    """Who started us may be gone already: that is no reason to stop."""
    try:
        with os.fdopen(descriptor, "w") as ready:
            ready.writelines(f"READY {address}\n" for address in addresses)
    except OSError as error:
        logging.getLogger("ipcbus.daemon").warning("cannot write to the ready descriptor %d: %s", descriptor, error.strerror)


if __name__ == "__main__":
    sys.exit(main())
