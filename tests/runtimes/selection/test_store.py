"""What was measured is kept on disk, believed only where it answers the question, and checked."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes import environment, registry
from edgecodec.runtimes.backends.tflite_backend import TfliteBackend
from edgecodec.runtimes.device import probe
from edgecodec.runtimes.device.probe import Device, package_versions, probe_device
from edgecodec.runtimes.selection import competition, selector, store
from edgecodec.runtimes.selection.candidates import Candidate, prove
from edgecodec.runtimes.selection.selector import choose, open_stage

SIZE = (64, 96)
STAGES: Any = ("synthesis",)


@pytest.fixture(autouse=True)
def timings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count measurements, and rank tflite first."""
    calls: list[int] = []

    def timed(candidates: Any, *_: object) -> None:
        calls.append(len(candidates))
        for candidate in candidates:
            candidate.median_s = {"tflite": 1.0, "openvino": 2.0}.get(candidate.name, 3.0)

    monkeypatch.setattr(competition, "time_candidates", timed)
    return calls


def only_file() -> Path:
    (path,) = (environment.cache_folder() or Path()).iterdir()
    return path


def test_second_process_measures_nothing(bundle: Bundle, timings: list[int]) -> None:
    first = choose(bundle, stages=STAGES, threads=1, size=SIZE)
    assert timings == [3]
    selector.clear_cache()
    assert choose(Bundle(bundle.path), stages=STAGES, threads=1, size=SIZE) == first
    session, choice = open_stage(bundle, "synthesis", threads=1, size=SIZE)
    session.close()
    assert choice == first.stages[0].best
    assert timings == [3]
    again = choose(bundle, stages=STAGES, threads=1, size=SIZE, refresh=True)
    assert timings == [3, 3]
    assert again.stages[0].ranked[0].backend == "tflite"


SECOND_START = """
import sys, time
from edgecodec.bundle.reading import Bundle
from edgecodec.runtimes.selection.selector import choose
with Bundle(sys.argv[1]) as bundle:
    begun = time.process_time()
    choose(bundle, threads=1, size=(64, 96))
    print(time.process_time() - begun)
"""


def test_second_start_selects_within_20_ms(bundle: Bundle) -> None:
    choose(bundle, threads=1, size=SIZE)
    command = [sys.executable, "-c", SECOND_START, str(bundle.path)]
    seconds = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.02  # of the processor: others may be at work as well


def test_every_part_of_the_question_counts(
    bundle: Bundle, timings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**options: Any) -> int:
        timings.clear()
        selector.clear_cache()
        choose(bundle, **{"stages": STAGES, "threads": 1, "size": SIZE, **options})
        return len(timings)

    assert (ask(), ask()) == (1, 0)
    assert ask(threads=2) == 1
    assert ask(size=(512, 512)) == 1
    assert ask(precision="fp32") == 1
    packages = package_versions()
    monkeypatch.setattr(probe, "package_versions", lambda: {**packages, "openvino": "1"})
    assert ask() == 1
    monkeypatch.setattr(store, "usable_cores", lambda: 99)
    assert ask() == 1
    monkeypatch.setattr(Device, "identity", lambda self: {"cpu": "x"})
    assert ask() == 1
    specs = dict(registry.plugin_specs())
    specs["mine"] = registry.PluginSpec("mine", "no_such_module:Mine", package="p", version="1")
    monkeypatch.setattr(store, "plugin_specs", lambda: specs)
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
    bundle: Bundle, timings: list[int], damage: Callable[[bytes], bytes]
) -> None:
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    path = only_file()
    intact = path.read_bytes()
    assert damage(intact) != intact
    path.write_bytes(damage(intact))
    selector.clear_cache()
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    assert timings == [3, 3]
    assert json.loads(only_file().read_bytes())["key"] == json.loads(intact)["key"]
    selector.clear_cache()
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    assert timings == [3, 3]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_its_place_is_not_waited_for(bundle: Bundle, timings: list[int]) -> None:
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    path = only_file()
    path.unlink()
    os.mkfifo(path)
    selector.clear_cache()
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    assert timings == [3, 3]
    assert path.is_file()


def test_folder_that_cannot_be_written_costs_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGECODEC_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.DEBUG, "edgecodec.runtimes"):
        session, _ = open_stage(bundle, "synthesis", threads=1, size=SIZE)
    session.close()
    kept = [r for r in caplog.records if "not kept" in r.getMessage()]
    assert [r.levelno for r in kept] == [logging.DEBUG]
    monkeypatch.setenv("EDGECODEC_CACHE", "")
    selector.clear_cache()
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    assert environment.cache_folder() is None


def test_cached_winner_that_answers_wrongly_by_now_is_measured_anew(
    bundle: Bundle, timings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    selector.clear_cache()
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
    session, choice = open_stage(bundle, "synthesis", threads=1, size=SIZE)
    session.close()
    assert choice.backend == "openvino"
    assert len(ran) == 2  # the check, and the measurement
    assert timings == [3, 2]
    selector.clear_cache()
    verdict = choose(bundle, stages=STAGES, threads=1, size=SIZE).stages[0]
    assert verdict.best.backend == "openvino"


def test_cached_winner_is_checked_once_per_process(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    selector.clear_cache()
    proofs = []

    def counted(candidate: Candidate, *rest: Any) -> Any:
        proofs.append(candidate.name)
        return prove(candidate, *rest)

    monkeypatch.setattr(selector, "prove", counted)
    for _ in range(3):
        session, _ = open_stage(bundle, "synthesis", threads=1, size=SIZE)
        session.close()
    assert proofs == ["tflite"]


def test_winner_that_a_process_died_of_is_not_trusted(bundle: Bundle, timings: list[int]) -> None:
    choose(bundle, stages=STAGES, threads=1, size=SIZE)
    selector.clear_cache()
    died = store.trial_name(bundle, "synthesis", "tflite", "fp32")
    folder = environment.cache_folder() or Path()
    marker = folder / f"{store._marker(died)}-{os.getpid()}"
    marker.touch()
    assert store.is_marked(died)
    session, choice = open_stage(bundle, "synthesis", threads=1, size=SIZE)
    session.close()
    assert timings == [3, 3]
    assert choice.backend == "tflite"  # it passed in a process of its own
    assert not store.is_marked(died)


def test_what_passed_on_one_machine_has_not_passed_on_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may serve several machines: what one processor lacks may crash on the next."""
    here = store.trial_name(bundle, "synthesis", "openvino", "bf16")
    store.note_passed(here)
    assert store.has_passed(here)
    device = probe_device()
    other = replace(device, features={**device.features, "avx512_bf16": None})
    monkeypatch.setattr(store, "probe_device", lambda: other)
    selector.clear_cache()
    there = store.trial_name(bundle, "synthesis", "openvino", "bf16")
    assert not store.has_passed(there)


def test_marker_of_a_running_process_is_no_death(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    marker = tmp_path / "cache" / f"{store._marker('it')}-{os.getppid()}"
    marker.touch()
    assert not store.is_marked("it")
    store.unmark("it")
    assert marker.exists()
    marker.rename(marker.with_name(f"{store._marker('it')}-4194304999"))
    assert store.is_marked("it")
    with pytest.raises(ZeroDivisionError), store.marking("other"):
        raise ZeroDivisionError  # an exception is no death
    assert not store.is_marked("other")


def test_two_processes_that_warm_the_cache_at_once_both_end_well(bundle: Bundle) -> None:
    script = (
        "from edgecodec.bundle.reading import Bundle\n"
        "from edgecodec.runtimes.selection.selector import choose\n"
        f"v = choose(Bundle({str(bundle.path)!r}), stages=('synthesis',), threads=1,\n"
        "           size=(64, 96), budget_s=0.02)\n"
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
