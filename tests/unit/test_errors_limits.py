"""Error codes and limits: what is fatal, what they say, and that the numbers fit each other."""

from __future__ import annotations

import dataclasses

import pytest

from ipcbus.protocol import limits
from ipcbus.protocol.errors import Code, ProtocolError, code_label
from ipcbus.protocol.limits import Limits


@pytest.mark.parametrize(
    ("code", "fatal"),
    [(Code.OK, False), (Code.BAD_FRAME, True), (Code.INTERNAL, True), (Code.NO_SUCH_NAME, False), (Code.LANE_IN_USE, False)],
)
def test_codes_below_20_end_the_connection(code: Code, fatal: bool) -> None:
    assert code.fatal is fatal


def test_labels() -> None:
    assert Code.NO_SUCH_NAME.label == "no_such_name"
    assert code_label(20) == "no_such_name"
    assert code_label("thermostat.cold") == "thermostat.cold"
    assert code_label(999) == "code 999"


def test_an_error_has_code_and_text() -> None:
    error = ProtocolError(Code.TOO_LARGE, "a frame of 5 bytes")
    assert (error.code, error.text, str(error)) == (Code.TOO_LARGE, "a frame of 5 bytes", "too_large: a frame of 5 bytes")


def test_the_largest_frame() -> None:
    assert Limits().max_frame_bytes == 16_842_752
    assert Limits(max_payload_bytes=100).max_frame_bytes == 100 + limits.ENVELOPE_MAX_BYTES


def test_limits_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().max_peers = 1  # type: ignore[misc]


def test_the_numbers_fit_each_other() -> None:
    default = Limits()
    assert default.max_frame_bytes < 2**32, "a length has four bytes"
    assert limits.HEADERS_MAX_BYTES + 512 + limits.ERROR_TEXT_MAX_BYTES < limits.ENVELOPE_MAX_BYTES
    assert default.max_frame_bytes <= default.max_credit_bytes, "the largest frame can be paid for"
    assert default.max_frame_bytes <= default.max_output_bytes, "the largest frame can be waited for"
    assert default.max_callee_requests <= default.max_requests
    assert default.max_timeout_ms < 2**32, "a timeout has four bytes"
