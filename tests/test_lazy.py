from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, dataclass

import pytest

from edgecodec.lazy import lazy_property


@dataclass(frozen=True)
class Sides:
    height: int
    width: int

    @lazy_property
    def area(self) -> list[int]:
        """In pixels."""
        return [self.height * self.width]


def test_a_lazy_property_is_computed_once_for_each_object() -> None:
    one, other = Sides(2, 3), Sides(4, 5)
    assert one.area == [6]
    assert one.area is one.area
    assert other.area == [20]
    assert Sides.area.__doc__ == "In pixels."
    with pytest.raises(FrozenInstanceError):
        one.height = 1  # type: ignore[misc]


def test_no_thread_waits_for_the_property_of_another_object() -> None:
    """As one would in a forked process, where the thread that computes does not exist."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, wait: bool) -> None:
            self.wait = wait

        @lazy_property
        def value(self) -> int:
            begun.set()
            return int(go_on.wait(30)) if self.wait else 2

    computing = threading.Thread(target=lambda: Slow(True).value)
    computing.start()
    try:
        assert begun.wait(30)
        found: list[int] = []
        quick = threading.Thread(target=lambda: found.append(Slow(False).value), daemon=True)
        quick.start()
        quick.join(10)
        assert found == [2]
    finally:
        go_on.set()
        computing.join()
