"""Memory of a picture serves the next one, once the first is gone and never before."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from edgecodec.codec import Codec
from edgecodec.coding import pictures as image_module
from edgecodec.coding import spare_memory
from edgecodec.coding.pictures import from_samples
from edgecodec.coding.spare_memory import SpareMemory


def place(array: npt.NDArray[np.uint8]) -> int:
    return array.ctypes.data


def kept(memory: SpareMemory) -> bool:
    return memory._block is not None


def test_memory_is_used_again_when_its_array_is_gone() -> None:
    memory = SpareMemory()
    first = memory.take((300, 400, 4))
    assert first.shape == (300, 400, 4)
    assert first.flags.c_contiguous
    was = place(first)
    second = memory.take((300, 400, 4))
    assert place(second) != was
    del first
    third = memory.take((200, 400, 4))
    assert place(third) == was
    assert third.shape == (200, 400, 4)


def test_what_was_cut_out_holds_the_memory() -> None:
    memory = SpareMemory()
    array = memory.take((300, 400, 4))
    part = np.asarray(array[10:20, ::2])[1:, 5:]
    del array
    assert not kept(memory)
    del part
    assert kept(memory)


def test_a_large_block_is_not_spent_on_a_small_picture() -> None:
    memory = SpareMemory()
    large = memory.take((1000, 1000, 4))
    was = place(large)
    del large
    small = memory.take((300, 300, 4))
    assert place(small) != was
    del small  # the larger of the two is kept
    assert place(memory.take((900, 1000, 4))) == was


def test_too_large_a_block_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_memory, "LARGEST", 1000)
    memory = SpareMemory()
    for size in (1000, 1001):
        array = memory.take((size,))
        del array
        assert (memory._block is None) == (size > 1000)
        memory._block = None


def test_nothing_is_kept_once_it_is_closed() -> None:
    memory = SpareMemory()
    first, second = memory.take((100,)), memory.take((100,))
    del first
    assert kept(memory)
    memory.close()
    assert not kept(memory)
    del second
    assert not kept(memory)
    assert memory.take((100,)).shape == (100,)


def test_garbage_that_is_collected_inside_does_no_harm() -> None:
    memory = SpareMemory()

    class Loop:
        def __init__(self) -> None:
            self.array, self.itself = memory.take((100,)), self

    for _ in range(50):
        Loop()  # goes when garbage is collected, not before
        with memory._lock:  # as if that happened inside of `take`
            gc.collect()
    assert memory._block is not None


def test_threads_never_share_a_block() -> None:
    memory = SpareMemory()
    wrong = threading.Event()

    def use(number: int) -> None:
        for _ in range(200):
            array = memory.take((64, 64, 4))
            array[...] = number
            if (array != number).any():
                wrong.set()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert not wrong.is_set()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_keep_their_pixels_as_long_as_they_are(codec: Codec, mode: str) -> None:
    rng = np.random.default_rng(4)
    shape = (96, 128, 3) if mode == "RGB" else (96, 128)
    files = [codec.encode(rng.integers(0, 256, shape).astype(np.uint8), q) for q in (20, 60, 90)]
    expected = [np.asarray(codec.decode(data)).copy() for data in files]
    held = [codec.decode(data) for data in files]
    parts = [picture.crop((3, 5, 70, 60)) for picture in map(codec.decode, files)]
    for _ in range(5):
        for data in files:
            codec.decode(data)
    for picture, part, right in zip(held, parts, expected, strict=True):
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), right)
        np.testing.assert_array_equal(np.asarray(part), right[5:60, 3:70])


def test_an_image_holds_its_memory_and_then_gives_it_back() -> None:
    memory = SpareMemory()
    samples = memory.take((8, 9, 4))
    samples[...] = 200
    image = from_samples(samples, "RGB", {})
    del samples
    assert (memory._block is None) == (image_module.sharing() is not None)
    again = image.copy()
    del image
    assert memory._block is not None
    memory._block[...] = 0
    assert again.getpixel((4, 4)) == (200, 200, 200)
