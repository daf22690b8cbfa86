"""ipcbus.protocol.walking: frames that were checked are walked over, not decoded."""

from __future__ import annotations

import pytest

from ipcbus.protocol.limits import HEADERS_MAX_BYTES
from ipcbus.protocol.messages import Kind, decode, encode_with_payload, pack
from ipcbus.protocol.walking import frame_end, frames_within, head_of, sender_of, topic_of

FRAMES = [encode_with_payload(bytes(size), Kind.PUBLISH, 1, "t", None) for size in (0, 5, 300)]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_where_frames_end_and_how_many_fit(make: type) -> None:
    run = make(b"".join(FRAMES))
    ends = [len(b"".join(FRAMES[: count + 1])) for count in range(3)]
    assert [frame_end(run, at) for at in (0, *ends[:2])] == ends
    for count, end in enumerate(ends, 1):
        assert frames_within(run, end) == (end, count)
        assert frames_within(run, end - 1)[1] == count - 1
    assert frames_within(run, 10_000) == (ends[-1], 3)
    assert frames_within(run, 0) == (0, 0)


@pytest.mark.parametrize("topic", ["t", "ü.x", "t" * 31, "t" * 32, "t" * 255])
@pytest.mark.parametrize("sender", [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53 - 1])
@pytest.mark.parametrize("kind", [Kind.PUBLISH, Kind.RETAIN])
def test_the_sender_and_the_topic_of_a_frame(topic: str, sender: int, kind: Kind) -> None:
    frame = encode_with_payload(b"x", kind, sender, topic, None)
    assert topic_of(frame) == topic.encode()
    assert sender_of(frame) == sender_of(FRAMES[1] + frame, len(FRAMES[1])) == sender
    assert topic_of(FRAMES[1] + frame, len(FRAMES[1])) == topic.encode()


#: As large as headers may be.
HEADERS = {"a": 1, "b": b"x" * (HEADERS_MAX_BYTES - 9)}


@pytest.mark.parametrize("make", [bytes, memoryview])
@pytest.mark.parametrize("meta", [None, 1, 127, {"encoding": 2, "é": None}, HEADERS])
@pytest.mark.parametrize("topic", ["t", "ü.x", "t" * 32, "t" * 255])
@pytest.mark.parametrize(("kind", "sender", "size"), [(Kind.PUBLISH, 0, 0), (Kind.RETAIN, 128, 5), (Kind.SEND, 2**53 - 1, 100_000)])
def test_the_head_of_a_frame(make: type, meta: object, topic: str, kind: Kind, sender: int, size: int) -> None:
    assert len(pack(HEADERS)) == HEADERS_MAX_BYTES
    frame = encode_with_payload(bytes(size), kind, sender, topic, meta)
    before = FRAMES[1]
    found = head_of(make(before + frame), len(before))
    assert found == (*decode(frame).elements, len(frame) - size)
