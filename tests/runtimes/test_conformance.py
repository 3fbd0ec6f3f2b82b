"""What every backend must do; a new entry of the registry is covered by itself."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.errors import BackendError
from edgecodec.runtimes.base import Artefact, Backend, Session, SessionOptions, StageName, lend
from edgecodec.runtimes.registry import BUILTIN, get_backend

Open = Callable[..., Session]


@pytest.fixture(params=[spec.name for spec in BUILTIN])
def backend(request: pytest.FixtureRequest) -> Backend:
    found = get_backend(request.param)
    available = found.probe()
    if not available.ok:
        pytest.skip(available.reason)
    return found


@pytest.fixture
def open_session(backend: Backend, bundle: Bundle) -> Iterator[Open]:
    opened = []

    def make(stage: StageName = "synthesis", threads: int | None = 1) -> Session:
        entry = next(
            e for e in bundle.manifest.artefacts if (e.stage, e.target) == (stage, backend.target)
        )
        artefact = Artefact(stage, entry.target, entry.precision, bundle.artefact_file(entry))
        opened.append(backend.load(artefact, SessionOptions(threads)))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def latents(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng.integers(-200, 200, (1, height, width, 4)).astype(np.float32)


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).integers(0, 256, (1, height, width, 3)).astype(np.float32)


def test_probe_names_version_and_accelerator(backend: Backend) -> None:
    found = backend.probe()
    assert found.ok
    assert found.version[0].isdigit()
    assert found.accelerator == "cpu"
    assert "\n" not in found.reason
    assert found.devices
    assert all(isinstance(name, str) and name for name in found.devices)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_run_gives_named_float32_maps(open_session: Open, tiny: Any, threads: int | None) -> None:
    x = picture(64, 96)
    found = open_session("analysis", threads).run({"x": x})
    assert {name: value.shape for name, value in found.items()} == {
        "y": (1, 4, 6, 4),
        "z": (1, 2, 3, 3),
    }
    for name, expected in tiny.analyse(x).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, atol=1e-3)


def test_run_takes_sizes_one_after_another(open_session: Open, tiny: Any) -> None:
    session = open_session()
    for height, width in ((4, 6), (1, 1), (9, 3), (4, 6), (16, 24)):
        y_hat = latents(height, width)
        expected = tiny.synthesise(y_hat)["x_hat"]
        np.testing.assert_allclose(session.run({"y_hat": y_hat})["x_hat"], expected, atol=1e-3)


def test_run_leaves_earlier_results_and_inputs_alone(open_session: Open) -> None:
    session = open_session()
    first_in, second_in = latents(4, 6, 1), latents(4, 6, 2)
    kept = first_in.copy()
    first = session.run({"y_hat": first_in})["x_hat"]
    copy = first.copy()
    second = session.run({"y_hat": second_in})["x_hat"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, copy)
    np.testing.assert_array_equal(first_in, kept)
    first[:] = 0.0  # the caller may write to its results
    assert session.run({"y_hat": second_in})["x_hat"].any()


def test_run_keeps_results_alive_when_the_session_closes(open_session: Open, tiny: Any) -> None:
    session = open_session()
    y_hat = latents(4, 6)
    found = session.run({"y_hat": y_hat})["x_hat"]
    session.close()
    np.testing.assert_allclose(found, tiny.synthesise(y_hat)["x_hat"], atol=1e-3)


def test_lend_shows_what_run_returns(open_session: Open, tiny: Any) -> None:
    session = open_session()
    for size in ((4, 6), (3, 5), (4, 6)):
        y_hat = latents(*size)
        ran = session.run({"y_hat": y_hat})["x_hat"]
        shown = lend(session, {"y_hat": y_hat}, lambda outputs: outputs["x_hat"].copy())
        np.testing.assert_array_equal(shown, ran)
        np.testing.assert_allclose(ran, tiny.synthesise(y_hat)["x_hat"], atol=1e-3)


def test_lend_passes_on_what_its_user_raises_and_goes_on(open_session: Open) -> None:
    session = open_session()
    y_hat = latents(4, 6)
    before = session.run({"y_hat": y_hat})["x_hat"]

    def fail(outputs: Any) -> None:
        view = outputs["x_hat"][0, 1:]
        try:
            raise KeyError(view.shape)
        except KeyError:
            raise LookupError(view.shape)  # noqa: B904 - one behind the other

    kept = []  # as a debugger or a logger does
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            lend(session, {"y_hat": y_hat}, fail)
        kept.append(caught.value)
    assert len(kept) == 2
    np.testing.assert_array_equal(session.run({"y_hat": y_hat})["x_hat"], before)


def test_lend_touches_no_exception_that_was_there_before(open_session: Open) -> None:
    session = open_session()

    def application() -> None:
        precious = "kept"  # noqa: F841 - it is looked for in the frame
        raise OSError("trouble of its own")

    def fail(_: Any) -> None:
        raise ValueError("another")

    handled: list[OSError] = []
    try:
        application()
    except OSError as exc:
        handled.append(exc)
        with pytest.raises(ValueError, match="another"):
            lend(session, {"y_hat": latents(4, 6)}, fail)
    frames = [frame for frame, _ in traceback.walk_tb(handled[0].__traceback__)]
    assert frames[-1].f_locals == {"precious": "kept"}


def test_lend_refuses_wrong_inputs_and_a_closed_session(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(BackendError, match="takes y_hat"):
        lend(session, {"x": latents(4, 6)}, len)
    session.close()
    with pytest.raises(BackendError, match="closed"):
        lend(session, {"y_hat": latents(4, 6)}, len)


def test_lend_serves_four_threads_at_once(open_session: Open) -> None:
    session = open_session()
    given = [latents(4, 6, seed) for seed in range(12)]
    expected = [session.run({"y_hat": y_hat})["x_hat"] for y_hat in given]

    def slowly(outputs: Any) -> Any:
        first = outputs["x_hat"].copy()
        time.sleep(0.002)  # long enough for another thread to overwrite it
        np.testing.assert_array_equal(outputs["x_hat"], first)
        return first

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda y_hat: lend(session, {"y_hat": y_hat}, slowly), given))
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_run_takes_views_and_read_only_arrays(open_session: Open, tiny: Any) -> None:
    session = open_session()
    whole = latents(8, 12)
    view = whole[:, ::2, 3:9]
    whole.flags.writeable = False
    expected = tiny.synthesise(np.ascontiguousarray(view))["x_hat"]
    np.testing.assert_allclose(session.run({"y_hat": view})["x_hat"], expected, atol=1e-3)
    assert session.run({"y_hat": whole})["x_hat"].shape == (1, 128, 192, 3)


def test_two_sessions_do_not_disturb_each_other(open_session: Open, tiny: Any) -> None:
    one, other = open_session(), open_session()
    a, b = latents(4, 6, 1), latents(2, 2, 2)
    first = one.run({"y_hat": a})["x_hat"]
    other.run({"y_hat": b})
    other.close()
    np.testing.assert_array_equal(one.run({"y_hat": a})["x_hat"], first)


def test_run_serves_four_threads_at_once(open_session: Open, tiny: Any) -> None:
    session = open_session()
    sizes = [(4, 6), (5, 3), (2, 2), (8, 8)]

    def work(number: int) -> bool:
        y_hat = latents(*sizes[number % 4], seed=number)
        found = session.run({"y_hat": y_hat})["x_hat"]
        return np.allclose(found, tiny.synthesise(y_hat)["x_hat"], atol=1e-3)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "synthesis takes y_hat; given: none"),
        ({"x": latents(2, 2)}, "synthesis takes y_hat; given: x"),
        ({"y_hat": latents(2, 2), "more": latents(1, 1)}, "given: more, y_hat"),
        ({"y_hat": latents(2, 2).astype(np.float64)}, "must be a float32 array, this is float64"),
        ({"y_hat": [[1.0]]}, "must be a float32 array, this is list"),
        ({"y_hat": latents(2, 2)[0]}, "this is 2x2x4"),
        ({"y_hat": np.zeros((2, 2, 2, 4), np.float32)}, "this is 2x2x2x4"),
        ({"y_hat": np.zeros((1, 0, 2, 4), np.float32)}, "this is 1x0x2x4"),
    ],
)
def test_run_refuses_wrong_inputs_in_one_line(
    backend: Backend, open_session: Open, inputs: Any, message: str
) -> None:
    session = open_session()
    with pytest.raises(BackendError) as caught:
        session.run(inputs)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{backend.name}: ")
    assert "\n" not in str(caught.value)
    assert session.run({"y_hat": latents(2, 2)})["x_hat"].shape == (1, 32, 32, 3)


def test_run_refuses_wrong_channels_and_recovers(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(BackendError, match=r"y_hat|failed"):
        session.run({"y_hat": np.zeros((1, 2, 2, 5), np.float32)})
    assert session.run({"y_hat": latents(2, 2)})["x_hat"].shape == (1, 32, 32, 3)


def test_run_refuses_pictures_not_a_multiple_of_32(open_session: Open) -> None:
    with pytest.raises(BackendError, match="multiples of 32"):
        open_session("analysis").run({"x": picture(64, 40)})


def test_close_ends_use_and_may_be_repeated(open_session: Open) -> None:
    session = open_session()
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"y_hat": latents(2, 2)})


@pytest.mark.parametrize("content", [None, b"", b"this is no model" * 10])
def test_load_refuses_a_missing_or_damaged_file(
    backend: Backend, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "synthesis.fp32.xml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError) as caught:
        backend.load(Artefact("synthesis", backend.target, "fp32", path), SessionOptions(1))
    assert "synthesis.fp32" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tflite_does_not_greet_on_stderr(tiny_bundle: Path) -> None:
    script = f"""
import numpy as np
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.selection.selector import shared
wanted = RunSettings(backend="tflite")
session, _ = shared.open_stage(Bundle({str(tiny_bundle)!r}), "synthesis", wanted)
session.run({{"y_hat": np.zeros((1, 2, 2, 4), np.float32)}})
"""
    if not get_backend("tflite").probe().ok:
        pytest.skip("no TFLite here")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
