"""ipcbus.cli.demo: /proc parsing, the books, the verdict, the view. No processes and no clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipcbus.cli.demo.figures import Machine, parse_cores, parse_disks, parse_interfaces, parse_load, parse_memory, token
from ipcbus.cli.demo.ledger import Ledger, Source
from ipcbus.cli.demo.verdict import Ends, checks, figures, lines
from ipcbus.cli.demo.view import bars, screen, status

ENDS = Ends({"publisher": 1, "service": 1, "subscriber": 1}, 0, 0, 0)

STAT = "cpu  30 0 10 60 0 0 0 0 0 0\ncpu0 10 0 5 30 5 0 0 0 7 7\ncpu1 20 0 5 30 0 0 0 0 0 0\nintr 5\n"
NET = """Inter-|   Receive  |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
eth0.7:100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0
"""
DISKS = """   7       0 loop0 5 0 5 0 5 0 5 0 0 0 0
 254       0 vda 10 0 100 0 20 0 40 0 0 0 0
 254       1 vda1 9 0 90 0 20 0 40 0 0 0 0
 259       0 nvme0n1 1 0 2 0 0 0 0 0 0 0 0
 259       1 nvme0n1p1 1 0 2 0 0 0 0 0 0 0 0
   8       0 sda 0 0 0 0 0 0 0 0 0 0 0
"""


def test_parsing_of_proc() -> None:
    assert parse_load("0.50 0.25 0.10 2/88 4882\n") == {"1m": 0.5, "5m": 0.25, "15m": 0.1, "running": 2, "tasks": 88}
    assert parse_memory("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 60 kB\nSwapTotal: 5 kB\nSwapFree: 3 kB\n") == {
        "total_bytes": 102400,
        "available_bytes": 61440,
        "used_bytes": 40960,
        "swap_used_bytes": 2048,
    }
    assert parse_cores(STAT) == {0: (15, 50), 1: (25, 55)}
    assert parse_interfaces(NET) == {"lo": (3193, 3193), "eth0.7": (100, 200)}
    assert parse_disks(DISKS) == {"vda": (51200, 20480), "nvme0n1": (1024, 0)}
    assert token("eth0.7") == "eth0_7"


def test_rates_are_between_readings(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "net/dev").write_text(NET)
    machine = Machine(str(tmp_path))
    first = dict(machine.readings(10.0))
    assert first["cpu.0"] == {"busy_percent": 0.0}
    assert first["net.eth0_7"]["received_bytes_per_s"] == 0
    (tmp_path / "stat").write_text("cpu0 20 0 5 60 5 0 0 0 0 0\n")
    (tmp_path / "net/dev").write_text(NET.replace(":100 ", ":300 "))
    second = dict(machine.readings(12.0))
    assert second["cpu.0"] == {"busy_percent": 25.0}
    assert second["net.eth0_7"] == {
        "received_bytes": 300,
        "received_bytes_per_s": 100,
        "sent_bytes": 200,
        "sent_bytes_per_s": 0,
    }


def test_a_machine_without_figures_has_none(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("nonsense")
    (tmp_path / "meminfo").write_text("")
    machine = Machine(str(tmp_path))
    assert list(machine.readings(1.0)) == []
    assert machine.uptime_s() is None
    assert machine.processes() == []
    assert machine.summary()["load"] is None


def test_processes_are_the_largest(tmp_path: Path) -> None:
    for pid, pages in ((1, 5), (20, 50), (300, 7)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"{pid}/statm").write_text(f"100 {pages} 0 0 0 0 0\n")
        (tmp_path / f"{pid}/comm").write_text(f"p{pid}\n")
    (tmp_path / "400").mkdir()  # ended meanwhile
    assert [process["pid"] for process in Machine(str(tmp_path)).processes(2)] == [20, 300]


# --- the books ----------------------------------------------------------------------------------------------------


def data(seq: int, sent: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "sent": sent, **more}


def good_run() -> Ledger:
    """Two sources and the service; numbers 3 and 4 of one source and 3 of the other are lost in the outage."""
    ledger = Ledger()
    for seq in (1, 2):
        ledger.message("machine.cpu.0", data(seq, 9.0, busy_percent=50.0), 9.0 + seq / 1000)
        ledger.message("machine.cpu.1", data(seq, 9.0, busy_percent=99.9), 9.0 + seq / 1000)
    ledger.answered(0.001, 9.5)
    ledger.killed(10.0)
    ledger.failed("ConnectionLost")
    ledger.restarted(10.5)
    ledger.message("machine.cpu.0", data(5, 10.9, busy_percent=0.0), 11.0)
    ledger.failed("NoSuchName")
    ledger.message("machine.cpu.1", data(4, 10.9, busy_percent=0.0), 11.1)
    ledger.answered(1.0, 11.2)
    ledger.answered(0.003, 11.3)
    ledger.published({"machine.cpu.0": 5, "machine.cpu.1": 4})
    return ledger


def failing(ledger: Ledger, ends: Ends = ENDS) -> list[str]:
    return [check.name for check in checks(ledger, ends) if not check.held]


def test_a_good_run_holds_and_is_counted_exactly() -> None:
    ledger = good_run()
    assert failing(ledger) == []
    assert (ledger.received, ledger.lost_in_outage, ledger.lost_elsewhere, ledger.repeated) == (6, 3, 0, 0)
    assert ledger.gap_s == pytest.approx(1.998)
    assert ledger.flowing
    assert ledger.back
    found = figures(ledger, ENDS, 2.0, checks(ledger, ENDS))
    assert found["ok"] is True
    assert found["messages"]["per_s"] == 3.0
    assert found["requests"]["p50_ms"] == 1.0
    assert found["requests"]["max_ms"] == 3.0  # the answer that ended the outage, after 1 s, is no latency
    assert found["messages"]["delivery_p99_ms"] == 2.0  # nor is the message that waited for the daemon
    assert found["outage"]["messages_late"] == 2
    assert found["requests"]["failed_in_outage"] == {"ConnectionLost": 1, "NoSuchName": 1}
    assert found["outage"]["daemon_down_ms"] == 500
    assert found["outage"]["messages_lost"] == 3
    text = "\n".join(lines(found, checks(ledger, ENDS)))
    assert "3 messages lost" in text
    assert "FAIL" not in text


def test_a_loss_outside_the_outage_fails_unless_the_bus_told_it() -> None:
    ledger = good_run()
    ledger.message("machine.cpu.0", data(7), 12.0)
    assert ledger.lost_elsewhere == 1
    assert failing(ledger) == ["outside the outage no message was lost without being told"]
    assert failing(ledger, Ends(ENDS.reconnects, 0, 0, 1)) == []


def test_a_loss_before_the_kill_and_at_the_very_end_is_found() -> None:
    ledger = Ledger()
    ledger.message("machine.load", data(2), 1.0)
    assert ledger.lost_elsewhere == 1
    ledger = good_run()
    assert ledger.missing({"machine.cpu.0": 6, "machine.new": 2}) == 3
    ledger.published({"machine.cpu.0": 6})
    assert ledger.lost_elsewhere == 1


@pytest.mark.parametrize("seq", [5, 3])
def test_what_comes_twice_or_late_fails(seq: int) -> None:
    ledger = good_run()
    ledger.message("machine.cpu.0", data(seq), 12.0)
    assert failing(ledger) == ["no message came twice or out of order"]


def test_a_source_that_stays_silent_fails() -> None:
    ledger = good_run()
    ledger.sources["machine.cpu.0"].after = 0
    assert not ledger.back
    assert failing(ledger) == ["and from every one of them after it"]


def test_a_source_that_ended_is_not_silent() -> None:
    ledger = good_run()
    ledger.sources["machine.disk.usb"] = unplugged = Source()
    unplugged.last = unplugged.received = unplugged.before = 7
    assert ledger.silent_sources() == ["machine.disk.usb"]
    ledger.published({"machine.disk.usb": 7})
    assert failing(ledger) == []


def test_requests_must_come_back_and_not_fail_elsewhere() -> None:
    ledger = good_run()
    ledger.failed("Expired")
    assert failing(ledger) == ["outside the outage no request failed"]
    ledger = good_run()
    ledger.answered_after = 0
    assert failing(ledger) == ["and after it"]


def test_the_ends_are_checked() -> None:
    ledger = good_run()
    assert failing(ledger, Ends({"publisher": 0, "service": 1}, 0, 0, 0)) == ["everybody reconnected"]
    assert failing(ledger, Ends(ENDS.reconnects, -9, 1, 0)) == [
        "the daemon ended in order when asked",
        "no process was left behind",
    ]


def test_nothing_at_all_fails_and_can_be_printed() -> None:
    ledger = Ledger()
    held = checks(ledger, ENDS)
    found = figures(ledger, ENDS, 0.0, held)
    assert found["ok"] is False
    assert found["messages"]["delivery_p50_ms"] is None
    assert any(line.startswith("FAIL") for line in lines(found, held))


def test_reasons_are_bounded_and_a_start_is_no_failure() -> None:
    ledger = Ledger()
    ledger.failed("starting")
    assert not ledger.failed_elsewhere
    ledger.answered(0.1, 1.0)
    for number in range(100):
        ledger.failed(f"reason {number}")
    assert len(ledger.failed_elsewhere) == 21
    assert ledger.failed_elsewhere["other"] == 80


# --- the view -----------------------------------------------------------------------------------------------------


def test_the_screen_fits_and_has_no_escapes_without_colour() -> None:
    ledger = good_run()
    for number in range(50):
        ledger.message(f"machine.disk.d{number}", data(1, read_bytes=1, read_bytes_per_s=2, written_bytes=3, written_bytes_per_s=4), 11.3)
    drawn = screen(ledger, ["1.0 s  something"], "5 s to go", 11.4, columns=60, rows=20, colour=False)
    assert len(drawn) == 20
    assert max(map(len, drawn)) <= 60
    assert not any("\x1b" in line for line in drawn)
    assert any("more" in line for line in drawn)
    coloured = screen(ledger, ["1.0 s  something"], "", 11.4, columns=60, rows=20, colour=True)
    assert "\x1b[" in coloured[0]


def test_every_family_has_a_description(tmp_path: Path) -> None:
    ledger = Ledger()
    for number, reading in enumerate((1.0, 2.0), 1):
        for name, found in Machine().readings(reading):
            ledger.message(f"machine.{name}", {"seq": number, "sent": reading, **found}, reading)
    ledger.message("machine.other", data(1), 2.0)
    assert ledger.sources
    assert len(screen(ledger, [], "", 2.0, columns=200, rows=200, colour=False)) > len(ledger.sources)


def test_small_figures() -> None:
    assert bars([0.0, 50.0, 100.0, 150.0, -1.0], 100.0) == "▁▅██▁"
    assert status(Ledger(), 1.0) == "0 messages/s, 0 in all, 0 lost"
    assert "2 requests, p50 1.00 ms" in status(good_run(), 11.2)
