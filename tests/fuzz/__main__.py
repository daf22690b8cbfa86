"""``python -m tests.fuzz``: looks for inputs that break a property, as long as it is let.

Without dependencies, guided by what the targets mark; ``--engine atheris`` has libFuzzer guided by the branches of the code, where
`atheris` is installed (it is in no extra: it exists for few interpreters and platforms).
"""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

#: Seeds that atheris begins with, made by the target's grammar.
_ATHERIS_SEEDS = 300


def _parser() -> argparse.ArgumentParser:
    about = "Look for inputs that break a property. Ends with 1 at the first."
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=about)
    parser.add_argument("--target", action="append", metavar="NAME", help="only this one; repeatable (--list names them)")
    parser.add_argument("--seconds", type=float, help="time for each target (default 60, unless --runs)")
    parser.add_argument("--runs", type=int, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other inputs (default 0)")
    parser.add_argument("--input", metavar="HEX", help="run the one target with this input only (- is the empty one)")
    parser.add_argument("--engine", choices=("plain", "atheris"), default="plain")
    parser.add_argument("--list", action="store_true", help="say which targets there are")
    return parser


def main() -> int:
    given = _parser().parse_args()
    if given.engine == "atheris":
        return _atheris(given)
    from .engine import attempt, fuzz
    from .targets import TARGETS

    names = given.target or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if given.list or unknown:
        for target in TARGETS.values():
            print(f"{target.name:10} {target.about}")
        return 2 if unknown else 0
    if given.input is not None:
        error = attempt(TARGETS[names[0]], b"" if given.input == "-" else bytes.fromhex(given.input))
        traceback.print_exception(error) if error is not None else print(f"{names[0]}: every property holds")
        return int(error is not None)
    seconds = given.seconds or (None if given.runs else 60.0)
    for name in names:
        report = fuzz(TARGETS[name], seed=given.seed, runs=given.runs, seconds=seconds)
        print(f"{name:10} {report.runs:9} inputs, {report.corpus:5} kept, {report.marks:5} marks", flush=True)
        if report.failure is not None:
            traceback.print_exception(report.failure.error)
            print(report.failure)
            return 1
    return 0


def _atheris(given: argparse.Namespace) -> int:
    """libFuzzer takes its process over and ends it: one process for each target. What it finds it writes into the directory."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install atheris, or leave --engine away", file=sys.stderr)
        return 2
    names = given.target or []
    if len(names) != 1:
        from .targets import TARGETS

        seconds = str(given.seconds or 60.0)
        command = [sys.executable, "-m", "tests.fuzz", "--engine", "atheris", "--seconds", seconds, "--seed", str(given.seed)]
        return max(subprocess.run([*command, "--target", name], check=False).returncode for name in names or TARGETS)
    with atheris.instrument_imports(include=["ipcbus", "ipcbus_client"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[names[0]]
    directory = Path(tempfile.mkdtemp(prefix=f"ipcbus-fuzz-{target.name}-"))
    chance = random.Random(given.seed)
    for number in range(_ATHERIS_SEEDS):
        (directory / f"seed-{number}").write_bytes(target.make(chance))
    options = [f"-max_total_time={int(given.seconds or 60)}", f"-artifact_prefix={directory}/", f"-seed={given.seed + 1}", "-max_len=4096"]
    print(f"{target.name}: corpus and findings in {directory}", flush=True)

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except Exception:
            print(f"python -m tests.fuzz --target {target.name} --input {data.hex() or '-'}", file=sys.stderr, flush=True)
            raise

    atheris.Setup([sys.argv[0], *options, str(directory)], run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
