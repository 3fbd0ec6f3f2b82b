"""What was measured is kept on disk, believed only where it answers the question, and checked."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes import environment, registry
from edgecodec.runtimes.backends.tflite_backend import TfliteBackend
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.device.probe import probe_device
from edgecodec.runtimes.selection import store as store_module
from edgecodec.runtimes.selection.candidates import Candidate
from edgecodec.runtimes.selection.competition import Tools
from edgecodec.runtimes.selection.selector import Selector
from edgecodec.runtimes.selection.store import Store
from tests.runtimes.test_registry import install

SIZE = (64, 96)
STAGES: Any = ("synthesis",)


@pytest.fixture
def timings() -> list[int]:
    """How many candidates each measurement so far had."""
    return []


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def selector(timings: list[int], store: Store) -> Selector:
    """One that ranks tflite first; `clear` makes it that of another process."""
    return ranking(timings, store)


def ranking(timings: list[int], store: Store) -> Selector:
    def timed(candidates: Sequence[Candidate], *_: object) -> None:
        timings.append(len(candidates))
        for candidate in candidates:
            candidate.median_s = {"tflite": 1.0, "openvino": 2.0}.get(candidate.name, 3.0)

    return Selector(Tools(store, timed))


def only_file() -> Path:
    (path,) = (environment.cache_folder() or Path()).iterdir()
    return path


def test_second_process_measures_nothing(
    bundle: Bundle, timings: list[int], selector: Selector
) -> None:
    first = selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    assert timings == [3]
    selector.clear()
    assert selector.choose(Bundle(bundle.path), RunSettings(1), stages=STAGES, size=SIZE) == first
    session, choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
    session.close()
    assert choice == first.stages[0].best
    assert timings == [3]
    again = selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE, refresh=True)
    assert timings == [3, 3]
    assert again.stages[0].ranked[0].backend == "tflite"


SECOND_START = """
import sys, time
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.base import RunSettings
from edgecodec.runtimes.selection.selector import shared
with Bundle(sys.argv[1]) as bundle:
    begun = time.process_time()
    shared.choose(bundle, RunSettings(1), size=(64, 96))
    print(time.process_time() - begun)
"""


def test_second_start_selects_within_20_ms(bundle: Bundle, selector: Selector) -> None:
    selector.choose(bundle, RunSettings(1), size=SIZE)
    command = [sys.executable, "-c", SECOND_START, str(bundle.path)]
    seconds = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.02  # of the processor: others may be at work as well


def test_every_part_of_the_question_counts(
    bundle: Bundle, timings: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = probe_device()

    def ask(wanted: RunSettings = RunSettings(1), size: Any = SIZE, **machine: Any) -> int:  # noqa: B008 - frozen
        timings.clear()
        another = ranking(timings, Store(**machine))
        another.choose(bundle, wanted, stages=STAGES, size=size)
        return len(timings)

    assert (ask(), ask()) == (1, 0)
    assert ask(RunSettings(2)) == 1
    assert ask(size=(512, 512)) == 1
    assert ask(RunSettings(1, precision="fp32")) == 1
    assert ask(cores=lambda: 99) == 1
    updated = {**device.packages, "openvino": "1"}
    assert ask(probe=lambda: replace(device, packages=updated)) == 1
    assert ask(probe=lambda: replace(device, cpu="x")) == 1
    install(tmp_path, "pack", "mine = no_such_module:Mine", {})
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    assert (ask(), ask()) == (1, 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-20],
        lambda data: b"\xff\x00" + data,
        lambda data: b"[1, 2]",
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"usable_cores": ', b'"usable_cores": 1'),
        lambda data: data.replace(b'"ranked": [', b'"ranked": 3, "other": ['),
        lambda data: data.replace(b'"median_s": 1.0', b'"median_s": "soon"'),
        lambda data: json.dumps(
            {"key": json.loads(data)["key"], "verdict": {"ranked": []}}
        ).encode(),
    ],
)
def test_damaged_or_foreign_file_is_ignored_and_rewritten(
    bundle: Bundle, timings: list[int], damage: Callable[[bytes], bytes], selector: Selector
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    path = only_file()
    intact = path.read_bytes()
    assert damage(intact) != intact
    path.write_bytes(damage(intact))
    selector.clear()
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    assert timings == [3, 3]
    assert json.loads(only_file().read_bytes())["key"] == json.loads(intact)["key"]
    selector.clear()
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    assert timings == [3, 3]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_its_place_is_not_waited_for(
    bundle: Bundle, timings: list[int], selector: Selector
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    path = only_file()
    path.unlink()
    os.mkfifo(path)
    selector.clear()
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    assert timings == [3, 3]
    assert path.is_file()


def test_folder_that_cannot_be_written_costs_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, selector: Selector
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGECODEC_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.DEBUG, "edgecodec.runtimes"):
        session, _ = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
    session.close()
    kept = [r for r in caplog.records if "not kept" in r.getMessage()]
    assert [r.levelno for r in kept] == [logging.DEBUG]
    monkeypatch.setenv("EDGECODEC_CACHE", "")
    selector.clear()
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    assert environment.cache_folder() is None


def test_cached_winner_that_answers_wrongly_by_now_is_measured_anew(
    bundle: Bundle, timings: list[int], monkeypatch: pytest.MonkeyPatch, selector: Selector
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    selector.clear()
    load = TfliteBackend.load
    ran = []

    def wrong(self: Any, artefact: Any, options: Any) -> Any:
        session = load(self, artefact, options)
        run = session.run

        def spoilt(inputs: Any) -> Any:
            ran.append(1)
            return {k: v + 2 for k, v in run(inputs).items()}

        session.run = spoilt  # type: ignore[method-assign]
        return session

    monkeypatch.setattr(TfliteBackend, "load", wrong)
    session, choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
    session.close()
    assert choice.backend == "openvino"
    assert len(ran) == 2  # the check, and the measurement
    assert timings == [3, 2]
    selector.clear()
    verdict = selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE).stages[0]
    assert verdict.best.backend == "openvino"


def test_cached_winner_that_lacks_memory_gives_way_and_is_not_forgotten(
    bundle: Bundle, selector: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    kept = only_file().read_bytes()
    selector.clear()

    def lack(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(TfliteBackend, "load", lack)
        session, choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
        session.close()
    assert choice.backend == "openvino"
    assert only_file().read_bytes() == kept
    session, choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
    session.close()
    assert choice.backend == "tflite"


def test_cached_winner_is_checked_once_per_process(
    bundle: Bundle, selector: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    selector.clear()
    load, ran = TfliteBackend.load, []

    def counted(self: Any, artefact: Any, options: Any) -> Any:
        session = load(self, artefact, options)
        run = session.run
        session.run = lambda inputs: (ran.append(1), run(inputs))[1]  # type: ignore[method-assign, func-returns-value]
        return session

    monkeypatch.setattr(TfliteBackend, "load", counted)
    for _ in range(3):
        session, _choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
        session.close()
    assert len(ran) == 1


def test_winner_that_a_process_died_of_is_not_trusted(
    bundle: Bundle, timings: list[int], selector: Selector, store: Store
) -> None:
    selector.choose(bundle, RunSettings(1), stages=STAGES, size=SIZE)
    selector.clear()
    died = store.trial_name(bundle, "synthesis", RunSettings(None, "tflite", "fp32"))
    folder = environment.cache_folder() or Path()
    marker = folder / f"{store_module._marker(died)}-{os.getpid()}"
    marker.touch()
    assert store.is_marked(died)
    session, choice = selector.open_stage(bundle, "synthesis", RunSettings(1), size=SIZE)
    session.close()
    assert timings == [3, 3]
    assert choice.backend == "tflite"  # it passed in a process of its own
    assert not store.is_marked(died)


def test_what_passed_on_one_machine_has_not_passed_on_another(bundle: Bundle, store: Store) -> None:
    """A folder may serve several machines: what one processor lacks may crash on the next."""
    here = store.trial_name(bundle, "synthesis", RunSettings(None, "openvino", "bf16"))
    store.note_passed(here)
    assert store.has_passed(here)
    device = probe_device()
    other = replace(device, features={**device.features, "avx512_bf16": None})
    store = Store(probe=lambda: other)
    there = store.trial_name(bundle, "synthesis", RunSettings(None, "openvino", "bf16"))
    assert not store.has_passed(there)


def test_marker_of_a_running_process_is_no_death(tmp_path: Path, store: Store) -> None:
    (tmp_path / "cache").mkdir()
    marker = tmp_path / "cache" / f"{store_module._marker('it')}-{os.getppid()}"
    marker.touch()
    assert not store.is_marked("it")
    store.unmark("it")
    assert marker.exists()
    marker.rename(marker.with_name(f"{store_module._marker('it')}-4194304999"))
    assert store.is_marked("it")
    with pytest.raises(ZeroDivisionError), store.marking("other"):
        raise ZeroDivisionError  # an exception is no death
    assert not store.is_marked("other")


def test_two_processes_that_warm_the_cache_at_once_both_end_well(bundle: Bundle) -> None:
    script = (
        "from edgecodec.bundle.reading import Bundle\n"
        "from edgecodec.runtimes.base import RunSettings\n"
        "from edgecodec.runtimes.selection.selector import shared\n"
        f"v = shared.choose(Bundle({str(bundle.path)!r}), RunSettings(1),\n"
        "    stages=('synthesis',), size=(64, 96), budget_s=0.02)\n"
        "print(v.stages[0].best.backend)\n"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", script]
    jobs = [
        subprocess.Popen(
            command,
            cwd=root,
            stdout=subprocess.PIPE,
            env={**os.environ, "EDGECODEC_DISABLE": "torch"},
        )
        for _ in range(2)
    ]
    answers = [job.communicate(timeout=120)[0].decode().strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    kept = json.loads(only_file().read_bytes())["verdict"]
    assert kept["ranked"][0]["backend"] in answers


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/edgecodec"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/edgecodec"),
        ("linux", {}, "/home/me/.cache/edgecodec"),
        ("darwin", {}, "/home/me/Library/Caches/edgecodec"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/edgecodec"),
        ("win32", {}, "/home/me/AppData/Local/edgecodec"),
        ("linux", {"EDGECODEC_CACHE": "/mine", "XDG_CACHE_HOME": "/c"}, "/mine"),
        ("linux", {"EDGECODEC_CACHE": ""}, None),
    ],
)
def test_cache_folder_is_that_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variables: dict[str, str],
    expected: str | None,
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    found = environment.cache_folder(variables, platform)
    assert found == (None if expected is None else Path(expected))
