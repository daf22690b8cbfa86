"""The table of subcommands: names, arguments, help and examples, and where the code of each is.

Owns everything that the parser shows. It imports no command: `main` loads the module of the one that was asked for.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from .connection import ANSWER_TIMEOUT_S

MAX_SECONDS = 2_000_000  #: 23 days; poll(2) takes milliseconds in an int, so about 2,147,483 are the most that it can wait


@dataclass(frozen=True, slots=True)
class Argument:
    """One ``add_argument`` call."""

    flags: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: ``function`` of ``module`` runs it and returns the exit code."""

    name: str
    module: str
    function: str
    summary: str
    text: str
    arguments: tuple[Argument, ...]
    needs_bus: bool = True  #: it has the options that say which bus


def _argument(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


def seconds(text: str) -> float:
    """An option's time: a number of seconds above 0, and at most MAX_SECONDS."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {MAX_SECONDS}")
    return value


def count(text: str) -> int:
    """An option's count: an integer of at least 1."""
    if not text.isdecimal() or len(text) > 12 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of at least 1")
    return int(text)


def number(text: str) -> int:
    """An option's uid or gid: a whole number."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > 2**32 - 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {2**32 - 2}")
    return int(text)


def _timeout(help: str) -> Argument:
    return _argument("--timeout", type=seconds, metavar="S", help=help)


_ANSWER = _timeout(f"seconds to wait for the bus and its answer (default {ANSWER_TIMEOUT_S:g})")
_JSON = _argument("--json", action="store_true", help="print JSON instead of a table")
_VALUE = _argument(
    "value", nargs="?", metavar="VALUE", help="a JSON value; - reads it from stdin; nothing at all is null"
)

#: On every subcommand that talks to a bus that is already there.
BUS_OPTIONS = (
    _argument("--address", metavar="ADDR", help="the bus: unix:/PATH or tcp:127.0.0.1:PORT (or $IPCBUS_ADDRESS)"),
    _argument("--bus", metavar="NAME", help="the user's bus of this name (or $IPCBUS_BUS; default: default)"),
    _argument("--secret-file", metavar="PATH", help="the bus's secret, for a tcp: address (or $IPCBUS_SECRET_FILE)"),
    _argument("--identity", metavar="NAME", help="which of its secrets that is (or $IPCBUS_IDENTITY; default: the bus's own)"),
    _argument("--autostart", action="store_true", help="start a bus where there is none (or $IPCBUS_AUTOSTART=1)"),
)

COMMANDS = (
    Command(
        "pub",
        "pubsub",
        "publish",
        "publish a message",
        """
  ipcbus pub room.kitchen '{"t": 21.5}'         a JSON value
  ipcbus pub room.kitchen --retain 21.5         kept, for who subscribes later
  ipcbus pub room.kitchen --retain --raw ''     an empty payload removes what is kept
  ipcbus pub door.ring --confirm --ttl 5        print how many took it; who reads later than in 5 s does not get it
  ipcbus pub log.boot --raw "it's up"           bytes as they are
  ipcbus pub camera.front --raw - < image.jpg   stdin as one message
  sensors | ipcbus pub room.all --lines         one message for each line of stdin

It returns when the bus has routed what was sent. While a slow subscriber holds the topic it waits, and says for whom.""",
        (
            _argument("topic", metavar="TOPIC", help="tokens with '.' between them, as in room.kitchen"),
            _VALUE,
            _argument("--retain", action="store_true", help="the bus keeps it for those who subscribe later"),
            _argument("--confirm", action="store_true", help="print how many subscriptions took it (a group is one)"),
            _argument("--ttl", type=seconds, metavar="S", help="seconds after which the bus drops it where it waits, or is kept"),
            _argument("--raw", action="store_true", help="send VALUE, or stdin, as bytes instead of JSON"),
            _argument("--lines", action="store_true", help="send each line of stdin as a message of its own"),
            _ANSWER,
        ),
    ),
    Command(
        "sub",
        "pubsub",
        "subscribe",
        "print what is published",
        """
  ipcbus sub 'room.*'                    one token may be anything
  ipcbus sub '>'                         everything, except the bus's own topics
  ipcbus sub '$bus.names.>'              who takes and leaves which name
  ipcbus sub room.kitchen --count 1      the next message (or the one that is kept), then end
  ipcbus sub 'job.>' --group workers     shared with everybody else in the group
  ipcbus sub camera.front --count 1 --raw > image.jpg
  ipcbus sub 'log.>' --policy drop_oldest | less     nobody waits for whoever does not scroll
  ipcbus sub 'room.*' --policy latest --soft 65536   the newest of each topic, where this is too slow for all

A line is the topic, a space, and the value as JSON. --json prints an object with topic, data, sender, retained and
headers. --raw prints the payloads' bytes, and nothing else. A message that two PATTERNs match is printed twice, and what
comes for one PATTERN may overtake what comes for another. What the bus lost on the way, and that it holds publishers or
drops messages because this is too slow, is told on stderr. With
--timeout the exit code is 4 when fewer than --count messages came (without --count: when none came).""",
        (
            _argument("patterns", nargs="+", metavar="PATTERN", help="a topic; * is one token, a last > one or more"),
            _argument("--count", type=count, metavar="N", help="end after N messages"),
            _argument("--group", metavar="G", help="share the messages with the other subscribers of group G"),
            _argument("--no-retained", action="store_true", help="leave out what the bus has kept"),
            _argument(
                "--policy",
                choices=("block", "drop_oldest", "drop_newest", "latest", "disconnect"),
                help="where this is too slow: publishers wait, messages are lost, or it ends (default: as the bus has it)",
            ),
            _argument("--soft", type=count, metavar="BYTES", help="so much may wait at the bus before this is too slow"),
            _argument("--hard", type=count, metavar="BYTES", help="so much at most (not with --policy block)"),
            _argument("--seconds", type=seconds, metavar="S", help="so long publishers wait, or it may be too slow"),
            _argument("--raw", action="store_true", help="print payloads as the bytes they are"),
            _argument("--json", action="store_true", help="print each message as one JSON object"),
            _timeout("end after S seconds (default: never)"),
        ),
    ),
    Command(
        "monitor",
        "monitor",
        "monitor",
        "print what others send: messages, requests, answers, errors",
        """
  ipcbus monitor                         everything, except the bus's own topics
  ipcbus monitor 'room.>'                publications to these topics, and what the owners of these names get
  ipcbus monitor thermostat --kind request --kind reply
  ipcbus monitor --kind error            what goes wrong, the bus's answers among it
  ipcbus monitor --seconds 10 --no-payloads --json > traffic.json

A line is the time since the bus began, the kind, the sender, to whom, #ID of a request, and the value as JSON. It slows
nobody: what is too much for it, or for limits.max_monitor_rate of the bus, is lost and told on stderr. The bus's policy says
who may do this, and which payloads are redacted. A frame that two PATTERNs match is printed twice. With --seconds and
--count the exit code is 4 when fewer frames came.""",
        (
            _argument("patterns", nargs="*", metavar="PATTERN", help="of topics and names; * is one token, a last > one or more"),
            _argument(
                "--kind",
                action="append",
                choices=("publish", "retain", "send", "request", "reply", "part", "error", "cancel"),
                help="only these; may be given several times (default: all)",
            ),
            _argument("--no-payloads", action="store_true", help="only how large they are"),
            _argument("--count", type=count, metavar="N", help="end after N frames"),
            _argument("--seconds", type=seconds, metavar="S", help="end after S seconds (default: never)"),
            _argument("--json", action="store_true", help="print each frame as one JSON object"),
        ),
    ),
    Command(
        "get",
        "pubsub",
        "get",
        "print what is kept for a topic",
        """
  ipcbus get room.kitchen                the value as JSON
  ipcbus get room.kitchen --json         with topic, sender and headers, as `ipcbus sub --json` prints it
  ipcbus get camera.front --raw > a.jpg

The exit code is 5 where nothing is kept.""",
        (
            _argument("topic", metavar="TOPIC", help="the topic; it may be one of the bus's own"),
            _argument("--raw", action="store_true", help="print the payload's bytes"),
            _argument("--json", action="store_true", help="print one JSON object"),
            _ANSWER,
        ),
    ),
    Command(
        "call",
        "calls",
        "call",
        "send a request and print the reply",
        """
  ipcbus call thermostat/set target=21.5 hold=true   arguments by name
  ipcbus call thermostat/set 21.5                    the one argument, or several in order
  ipcbus call thermostat/set '{"target": 21.5}'      the same as a JSON value
  ipcbus call bus/stats                              the bus is a service too
  ipcbus call :7/status                              a peer by its id (see `ipcbus peers`)
  ipcbus call camera.front/picture --raw > a.jpg     argument and reply as bytes
  ipcbus call logs/follow --stream                   the values of a generator, each on a line as it comes

The reply is printed as JSON on one line; with --raw, if it is bytes, as these. Where the service says what its methods
take (`ipcbus describe NAME` prints it), a text needs no quotes, and what cannot be right is told before it is sent.""",
        (
            _argument("to", metavar="NAME/METHOD", help="the service and its method"),
            _argument(
                "values",
                nargs="*",
                metavar="VALUE",
                help="a JSON value, or several, or KEY=VALUE; one - reads it from stdin; nothing at all is null",
            ),
            _argument("--raw", action="store_true", help="send VALUE, or stdin, as bytes and print the reply as bytes"),
            _argument("--stream", action="store_true", help="print the values of a generator as they come, without a time limit"),
            _ANSWER,
        ),
    ),
    Command(
        "describe",
        "describe",
        "describe",
        "print the methods of a service, with their signatures",
        """
  ipcbus describe thermostat
  ipcbus describe thermostat/set
  ipcbus describe bus
  ipcbus describe thermostat --json | jq -r '.methods | keys[]'

A service of the Python library made by serve() says all of this by itself.""",
        (
            _argument("name", metavar="NAME[/METHOD]", help="the name, or one method of it"),
            _argument("--json", action="store_true", help="print JSON instead of text"),
            _ANSWER,
        ),
    ),
    Command(
        "complete",
        "describe",
        "complete",
        "complete command lines in a shell",
        """
  eval "$(ipcbus complete --bash)"        in ~/.bashrc: Tab completes commands, and names, methods and parameters

  ipcbus complete -- call thermo          what the last word may become, a candidate on each line:
  ipcbus complete -- call thermostat/     names, methods,
  ipcbus complete -- call thermostat/set ta    and parameters

It asks the bus, starts none, and prints nothing where nobody knows.""",
        (
            _argument("words", nargs="*", metavar="WORD", help="the words after ipcbus, after --; the last is incomplete"),
            _argument("--bash", action="store_true", help="print what bash needs to know"),
            _ANSWER,
        ),
    ),
    Command(
        "serve",
        "calls",
        "serve",
        "answer requests with a command's output",
        """
  ipcbus serve clock/now --text -- date
  ipcbus serve math/sum -- jq add                    request and reply are JSON
  ipcbus serve image/shrink --raw -- convert - -resize 50% -
  ipcbus serve 'door/*' -- ./door.sh                 any method; it is in $IPCBUS_METHOD

The command gets the request's value as JSON on stdin (--raw: its bytes), $IPCBUS_METHOD and $IPCBUS_SENDER, and of who
asks what the kernel says: $IPCBUS_SENDER_PID, _UID, _GID and _UNIT, on TCP the name of its secret as _IDENTITY. Its
stdout is the reply: JSON (nothing: null), or with --text a string, or with --raw bytes. When it exits with N other than
0 the caller gets the error exit-N with the last line of stderr. It is killed when the caller gives up.
Requests are answered one after the other; start it more than once with --mode shared for more.""",
        (
            _argument("to", metavar="NAME/METHOD", help="the name to own and the method to serve; * is any method"),
            _argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --"),
            _argument("--raw", action="store_true", help="request and reply are bytes"),
            _argument("--text", action="store_true", help="stdout is a text, not JSON"),
            _argument(
                "--mode",
                choices=("exclusive", "queue", "shared"),
                default="exclusive",
                help="how to own the name: alone, in a waiting line, or with others (default exclusive)",
            ),
            _argument("--count", type=count, metavar="N", help="end after N answers"),
            _timeout("seconds that the command may take for one request (default: what the caller allows)"),
        ),
    ),
    Command(
        "names",
        "lists",
        "names",
        "list the names and who owns them",
        """
  ipcbus names
  ipcbus names --json | jq '.[].name'""",
        (_JSON, _ANSWER),
    ),
    Command(
        "peers",
        "lists",
        "peers",
        "list who is connected",
        """
  ipcbus peers
  ipcbus peers --json | jq '.[] | select(.queued_bytes > 0)'    who reads too slowly""",
        (_JSON, _ANSWER),
    ),
    Command(
        "quotas",
        "lists",
        "quotas",
        "list who uses how much of what the bus has, and how much they may",
        """
  ipcbus quotas
  ipcbus quotas --json | jq '.[] | select(.uid == 1000)'

A row is a resource in use: of one program, of all programs of a user, or of everybody. share is what it may come to as
things are, which is less than the limit where others use it too (PROTOCOL.md, Q-2). What is refused names the option
that raises the limit.""",
        (_JSON, _ANSWER),
    ),
    Command(
        "topics",
        "lists",
        "topics",
        "list the topics and their traffic",
        """
  ipcbus topics
  ipcbus topics --json | jq '.[] | select(.retained).topic'     what is kept""",
        (_JSON, _ANSWER),
    ),
    Command(
        "stats",
        "lists",
        "stats",
        "print the bus's counters",
        """
  ipcbus stats
  ipcbus stats --json | jq .lost""",
        (_JSON, _ANSWER),
    ),
    Command(
        "why",
        "why",
        "why",
        "say what became of messages that did not arrive, and what to do about it",
        """
  ipcbus why                      what was lost, refused or wanted by nobody of late, the newest first
  ipcbus why room.kitchen         who gets what is published to a topic, and what became of it
  ipcbus why 'room.>'             the topics of a pattern
  ipcbus why thermostat           a name: its owner's losses, and requests to it that failed; or a program
  ipcbus why :7                   a peer (see `ipcbus peers`)
  ipcbus why --json | jq '.losses[] | select(.why == "too_slow")'

The bus remembers the latest 50 episodes of each kind; the counters (`ipcbus stats`, `peers`, `topics`) are complete.""",
        (
            _argument("what", nargs="?", metavar="WHAT", help="a topic, a pattern, a name, a program, or a peer as :ID"),
            _argument("--count", type=count, default=20, metavar="N", help="print the newest N (default 20)"),
            _JSON,
            _ANSWER,
        ),
    ),
    Command(
        "policy",
        "policy",
        "policy",
        "say who may do what on a bus, and which rule of which file decides",
        """
  ipcbus policy test publish room.kitchen                              may I?
  ipcbus policy test --kind system --as-uid 1000 publish room.kitchen
  ipcbus policy test --as-user alice --as-group operators call lights/on
  ipcbus policy test --as-unit lights.service own home.lights
  ipcbus policy test --as-identity panel subscribe 'room.>'            on TCP
  ipcbus policy list --kind system                                     all rules in order, and where they come from

ACTION is connect, own NAME, send NAME, call NAME METHOD, publish TOPIC, subscribe PATTERN, monitor [PATTERN] or admin. It reads
the files that ipcbusd would read; a bus that runs has them as they were when it started, or at its last SIGHUP. The exit code is 0
where it is allowed and 5 where it is denied. `ipcbusd --check-config` finds rules that contradict each other or decide nothing.""",
        (
            _argument("what", choices=("test", "list"), metavar="test|list", help="judge one action, or print all rules"),
            _argument("words", nargs="*", metavar="ACTION [TARGET [METHOD]]", help="what somebody wants to do"),
            _argument("--as-uid", type=number, metavar="N", help="judge this user (default: the caller), with the groups that it has"),
            _argument("--as-user", metavar="NAME", help="the same by name"),
            _argument("--as-gid", type=number, metavar="N", help="with this primary group"),
            _argument("--as-group", action="append", metavar="G", help="in this group too, by name or number; repeatable"),
            _argument("--as-unit", metavar="UNIT", help="in this systemd unit, as in lights.service"),
            _argument("--as-user-unit", metavar="UNIT", help="in this unit of the user's own systemd"),
            _argument("--as-identity", metavar="NAME", help="connected by TCP with the secret of this name (the bus's own: default)"),
            _argument("--kind", choices=("user", "system"), help="of which kind the bus is (default: as configured)"),
            _argument("--config", metavar="FILE", help="the daemon's configuration file"),
            _argument("--policy-file", metavar="FILE", help="the main policy file (default: as configured)"),
            _argument("--policy-dir", action="append", metavar="DIR", help="a drop-in directory (default: as configured); repeatable"),
            _argument("--json", action="store_true", help="print one JSON object"),
        ),
        needs_bus=False,
    ),
    Command(
        "ping",
        "ping",
        "ping",
        "measure round trips to the bus",
        """
  ipcbus ping
  ipcbus ping --count 1000 --interval 0.001 --json""",
        (
            _argument("--count", type=count, default=5, metavar="N", help="how many (default 5)"),
            _argument("--interval", type=seconds, default=0.2, metavar="S", help="seconds between two (default 0.2)"),
            _argument("--json", action="store_true", help="print the figures as one JSON object"),
            _ANSWER,
        ),
    ),
    Command(
        "demo",
        "demo.command",
        "demo",
        "watch a private bus at work, with its daemon killed in the middle",
        """
  ipcbus demo
  ipcbus demo --seconds 30
  ipcbus demo --plain --seconds 6
  ipcbus demo --json | jq .requests

It starts a daemon of its own, a publisher of this machine's figures from /proc, and a service that answers requests
about them. In the middle it kills the daemon with SIGKILL, starts it again, and counts what was lost. It exits 0 only
if everybody came back and every message is accounted for. Nothing is left behind, unless the demo itself is killed with
SIGKILL: its processes end with it then, but its directory ipcbus-demo-… stays in $TMPDIR (or /tmp).""",
        (
            _argument("--seconds", type=seconds, default=12.0, metavar="S", help="how long, at least 4 (default 12)"),
            _argument("--plain", action="store_true", help="print lines instead of redrawing the screen"),
            _argument("--json", action="store_true", help="print only the summary, as JSON"),
        ),
        needs_bus=False,
    ),
)
