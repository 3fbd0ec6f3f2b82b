from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgecodec.codec import Codec
from edgecodec.coding.overlap import Ahead, in_two_steps
from edgecodec.coding.profiling import Profile


def failing_at(number: int) -> Callable[[int], int]:
    def step(item: int) -> int:
        if item == number:
            raise LookupError(str(item))
        return item

    return step


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_two_steps_give_what_a_loop_gives(count: int) -> None:
    assert in_two_steps(lambda i: i + 1, lambda i: i * i, range(count)) == [
        (i + 1) ** 2 for i in range(count)
    ]


def test_the_steps_run_at_the_same_time() -> None:
    """The first step of item 1 waits for the second step of item 0 to have begun."""
    begun = threading.Event()

    def first(item: int) -> int:
        assert item == 0 or begun.wait(5)
        return item

    def second(item: int) -> int:
        begun.set()
        return threading.get_ident()

    threads = in_two_steps(first, second, range(3))
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_few_items_wait_between_the_steps() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def second(item: int) -> None:
        time.sleep(0.005)
        ended.append(item)

    def first(item: int) -> int:
        begun.append(item)
        assert len(begun) - len(ended) <= 4  # one at each step, two between them
        return item

    in_two_steps(first, second, range(12))


def test_what_a_step_raises_ends_the_work() -> None:
    for first, second in ((failing_at(2), failing_at(-1)), (failing_at(-1), failing_at(2))):
        before = threading.active_count()
        with pytest.raises(LookupError, match="2"):
            in_two_steps(first, second, range(100))
        assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 7])
def test_ahead_does_every_item_once_and_in_order(count: int) -> None:
    begun: list[int] = []
    done: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        done.append(number)

    with Ahead(work, count) as ahead:
        for number in range(count):
            ahead.wait_for(number)
            assert set(done) >= set(range(number + 1))
    assert sorted(begun) == list(range(count))


def test_who_waits_takes_part() -> None:
    """Items 0 and 1 each wait for the other to be at work."""
    together = threading.Barrier(2)

    def work(_: int) -> None:
        together.wait(5)

    with Ahead(work, 2) as ahead:
        ahead.wait_for(1)


def test_ahead_raises_the_first_of_several_errors() -> None:
    together = threading.Barrier(2)

    def work(number: int) -> None:
        together.wait(5)
        if number == 0:
            time.sleep(0.02)  # so that it fails last
        raise LookupError(str(number))

    with Ahead(work, 9) as ahead, pytest.raises(LookupError, match="0"):
        ahead.wait_for(8)


@pytest.mark.parametrize("count", [1, 50])
def test_ahead_raises_where_the_item_is_waited_for(count: int) -> None:
    failing = min(20, count - 1)
    step = failing_at(failing)

    def work(number: int) -> None:
        step(number)

    with Ahead(work, count) as ahead:
        if failing:
            ahead.wait_for(failing - 1)
        for number in {failing, count - 1}:
            with pytest.raises(LookupError):
                ahead.wait_for(number)


def test_leaving_early_begins_nothing_more() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    with Ahead(work, 1000) as ahead:
        ahead.wait_for(0)
    count = len(done)
    assert count < 100
    time.sleep(0.03)
    assert len(done) == count


def test_entropy_coding_of_tiles_has_a_thread_of_its_own() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (96, 160, 3), np.uint8)
    with Codec(backend="onnxruntime", precision="fp32") as codec:
        encoding, decoding = Profile(), Profile()
        data = codec.encode(pixels, tile=32, profile=encoding)
        codec.decode(data, profile=decoding)
    for profile, network in ((encoding, "analysis"), (decoding, "synthesis")):
        threads = {
            name: {span.thread for span in profile.spans if span.name == name}
            for name in (network, "entropy")
        }
        assert len(threads[network]) == 1
        assert threads["entropy"] - threads[network]
        assert sorted(s.tile or 0 for s in profile.spans if s.name == "entropy") == [*range(15)]


def test_tiles_are_read_in_the_order_in_which_the_network_needs_them() -> None:
    """The first of 3 x 5 tiles sees 3 x 3 of them at most, not all above the last of those."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (96, 160, 3), np.uint8)
    with Codec(backend="onnxruntime", precision="fp32") as codec:
        data = codec.encode(pixels, tile=32)
        orders = [codec._decoder(data, keep_going=kept)[1]._order for kept in (True, False)]
    assert orders[0][:9] == [0, 1, 2, 5, 6, 7, 10, 11, 12]
    assert sorted(orders[0]) == list(range(15)) == orders[1]


def test_where_no_thread_can_be_begun_the_work_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under a limit of memory."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert in_two_steps(lambda i: i + 1, lambda i: 2 * i, range(4)) == [2, 4, 6, 8]
    done: list[int] = []
    with Ahead(done.append, 3) as ahead:
        ahead.wait_for(2)
    assert done == [0, 1, 2]
