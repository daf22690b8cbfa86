"""ipcbus.broker.deadlines: items that wait differently long."""

from __future__ import annotations

from ipcbus.broker.deadlines import _STALE_MIN, Deadlines


def test_what_is_due_comes_in_the_order_of_its_deadlines() -> None:
    waiting: Deadlines[str] = Deadlines()
    for item, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("also b", 2.0)):
        waiting.start(item, deadline)
    assert waiting.earliest == 1.0
    assert waiting.due(0.99) == []
    assert waiting.due(2.0) == ["a", "b", "also b"]
    assert "c" in waiting
    assert "a" not in waiting
    assert waiting.earliest == 3.0


def test_an_item_has_one_deadline_which_may_be_moved_and_taken_back() -> None:
    waiting: Deadlines[str] = Deadlines()
    waiting.start("a", 1.0)
    waiting.start("a", 5.0)
    assert waiting.due(4.0) == []
    waiting.hasten("a", 6.0)
    assert waiting.earliest == 5.0
    waiting.hasten("a", 2.0)
    assert waiting.earliest == 2.0
    waiting.stop("a")
    waiting.stop("a")
    assert waiting.earliest is None
    assert waiting.due(10.0) == []


def test_what_was_stopped_does_not_pile_up() -> None:
    waiting: Deadlines[int] = Deadlines()
    waiting.start(-1, 0.0)  # stands first, so that nothing behind it is looked at
    for number in range(10 * _STALE_MIN):
        waiting.start(number, 1.0)
        waiting.stop(number)
    assert len(waiting._heap) <= _STALE_MIN + 3
