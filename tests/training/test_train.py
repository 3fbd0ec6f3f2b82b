from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecodec.cli import main
from edgecodec.coding import image_files
from edgecodec.evaluation.metrics import ms_ssim_db
from edgecodec.model.checkpoint import (
    FORMAT,
    SIGNIFICANT_BITS,
    export_weights,
    load_checkpoint,
    load_codec,
    slim_checkpoint,
)
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import NeuralCodec
from edgecodec.training.options import SavedRun, TrainingOptions
from edgecodec.training.photos import load_photos, random_crop
from edgecodec.training.train import Trainer, train
from tests.training.conftest import LAPPED, SMALL

OPTIONS = TrainingOptions(
    steps=30,
    batch=2,
    size=64,
    final_size=128,
    warmup=2,
    validate_every=1000,
    learning_rate=2e-3,
    decay_share=0.0,
    rounding_share=0.0,
    synthetic=0.0,
)
"""Without a last part, so that a run that has ended can be given more steps."""


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small codec trained for 30 steps."""
    path = tmp_path_factory.mktemp("trained") / "codec.pt"
    run(photos, path)
    return path


def changed(source: Path, target: Path, **entries: object) -> Path:
    """Write a checkpoint with other entries; None leaves one out."""
    payload = {**torch.load(source, weights_only=True), **entries}
    torch.save({k: v for k, v in payload.items() if v is not None}, target)
    return target


def run(photos: Path, out: Path, *, resume: Path | None = None, steps: int = 30) -> str:
    log = io.StringIO()
    options = TrainingOptions(**{**OPTIONS.__dict__, "steps": steps})
    valid = [photos] if steps == 30 else []
    saved = SavedRun.load(resume) if resume else None
    train([photos], valid, out, options, device="cpu", resume=saved, config=SMALL, log=log)
    return log.getvalue()


def test_load_photos_reads_folders_and_tar_files(photos: Path) -> None:
    assert [p.shape for p in load_photos([photos])] == [(160, 200, 3)] * 3
    with pytest.raises(ValueError, match="no such file"):
        load_photos([photos / "nowhere"])
    with pytest.raises(ValueError, match="neither a folder nor a tar file"):
        load_photos([Path("/dev/null")])  # as any device: some have no end
    with pytest.raises(ValueError, match="no photos of at least 500"):
        load_photos([photos], min_side=500)


def test_load_photos_names_what_it_cannot_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = photos / "a.png"
    with pytest.raises(ValueError, match=r"a\.png: neither a folder nor a readable tar"):
        load_photos([single])
    cut = tmp_path / "cut.tar"
    cut.write_bytes((photos / "more.tar").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.tar: neither a folder nor a readable tar"):
        load_photos([tmp_path])
    cut.unlink()
    blob = single.read_bytes()
    broken = {"cut": blob[:200], "chunk": blob[:33] + b"\0\0\0\1????" + blob[33:]}
    for name, content in broken.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.png: .* image"):
            load_photos([tmp_path])
        path.unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png: too large for Pillow .*bomb"):
        load_photos([photos])


def test_load_photos_passes_over_folders_with_names_of_files(photos: Path, tmp_path: Path) -> None:
    for name in ("b.png", "c.tar"):
        (tmp_path / name).mkdir()
    (tmp_path / "c.tar" / "a.png").write_bytes((photos / "a.png").read_bytes())
    assert len(load_photos([tmp_path])) == 1


def test_load_photos_takes_what_plugins_read_out_of_tar_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".heic", ".jxl"):  # installed or not; what Pillow finds inside is a PNG file
        monkeypatch.setitem(image_files.PLUGINS, suffix, image_files.Plugin("PIL", "pillow"))
    monkeypatch.setitem(image_files.PLUGINS, ".hif", image_files.Plugin("absent_plugin", "x"))
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("a.heic", "b.JXL", "c.hif", "d.txt"):
            tar.add(tmp_path / "x.png", name)
    assert len(load_photos([tmp_path / "photos.tar"])) == 2


def test_random_crop_is_a_function_of_its_generator(photos: Path) -> None:
    photo = load_photos([photos])[0]
    a = random_crop(photo, 64, np.random.default_rng(5))
    b = random_crop(photo, 64, np.random.default_rng(5))
    assert a.shape == (64, 64, 3)
    assert np.array_equal(a, b)


def test_train_lowers_the_loss(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "codec.pt", steps=400)
    rows = [json.loads(line) for line in (tmp_path / "codec.log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert losses[-1] < 0.8 * losses[0]


def test_interrupted_training_continues_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 11 of 30 steps and resumed, a run ends with the weights of one not stopped."""
    torch.use_deterministic_algorithms(True)
    try:
        whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
        run(photos, whole)
        from edgecodec.training import train

        original = train.Trainer._one_step

        def interrupted(self: train.Trainer, batch: np.ndarray) -> object:
            if self.step == 11:
                self.save()
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(train.Trainer, "_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(photos, parts)
        monkeypatch.undo()
        assert load_checkpoint(parts)["step"] == 11
        run(photos, parts, resume=parts)
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = load_checkpoint(whole), load_checkpoint(parts)
    assert a["step"] == b["step"] == 30
    for kind in ("weights", "raw"):
        assert all(torch.equal(a[kind][k], b[kind][k]) for k in a[kind])


def test_export_weights_keeps_what_a_release_needs(
    photos: Path, trained: Path, tmp_path: Path
) -> None:
    export_weights(trained, tmp_path / "release.pt")
    release = load_checkpoint(tmp_path / "release.pt")
    assert "optimiser" not in release
    assert all(v.dtype == torch.float16 for v in release["weights"].values())
    codec = load_codec(tmp_path / "release.pt")
    assert codec.cfg == SMALL
    weight = codec.g_s[1].enter.weight  # type: ignore[union-attr]
    mantissas = torch.frexp(weight)[0] * 2.0**SIGNIFICANT_BITS  # type: ignore[arg-type]
    assert torch.equal(mantissas, mantissas.round())
    x, quality = torch.rand(1, 3, 64, 64) * 255, torch.tensor([50.0])
    with torch.inference_mode():
        want, got = (c(x, quality)[0] for c in (load_codec(trained), codec))
    assert float((got - want).std()) < 0.1 * float(want.std())  # some symbols are others
    with pytest.raises(ValueError, match="--restart"):
        run(photos, tmp_path / "more.pt", resume=tmp_path / "release.pt")


def test_load_checkpoint_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_codec(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_codec(path)
    torch.save({"format": "other"}, path)
    with pytest.raises(ValueError, match="not an edgecodec checkpoint"):
        load_codec(path)
    torch.save({"format": "edgecodec-checkpoint-1", "config": {}, "weights": {}}, path)
    with pytest.raises(ValueError, match="does not fit"):
        load_codec(path)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no configuration": ({"config": None}, "has no configuration"),
    "other configuration": ({"config": {**SMALL.to_dict(), "lambda_min": 0}}, "does not fit"),
    "no weights": ({"weights": None}, "has no weights"),
    "weights in a list": ({"weights": [1]}, "has no weights"),
    "weights of strings": ({"weights": {"a": "b"}}, "not a tensor"),
    "other weights": ({"weights": {"a": torch.zeros(1)}}, "does not fit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_checkpoint_that_is_wrong_is_named_in_one_line(
    photos: Path, trained: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entries, message = WRONG[name]
    path = changed(trained, tmp_path / "wrong.pt", **entries)
    uses: list[Callable[[], object]] = [
        lambda: load_codec(path),
        lambda: export_weights(path, tmp_path / "out.pt"),
        lambda: run(photos, tmp_path / "out.pt", resume=path),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=rf"wrong\.pt: .*{message}") as caught:
            use()
        assert "\n" not in str(caught.value)
    for more in ((), ("--restart",)):
        command = ["train", "--images", str(photos), "--out", str(tmp_path / "out.pt")]
        assert main([*command, "--resume", str(path), "--device", "cpu", *more]) == 1
        assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.pt"]


@pytest.mark.parametrize(
    "entries",
    [
        {"raw": None},
        {"raw": {}},
        {"random": None},
        {"random": "x"},
        {"optimiser": {}},
        {"optimiser": "x"},
        {"step": "x"},
        {"step": -1},
    ],
)
def test_damaged_state_of_training_is_refused(
    photos: Path, trained: Path, tmp_path: Path, entries: dict[str, object]
) -> None:
    path = changed(trained, tmp_path / "wrong.pt", **entries)
    with pytest.raises(ValueError, match=r"wrong\.pt: "):
        run(photos, tmp_path / "out.pt", resume=path)
    assert not (tmp_path / "out.log.jsonl").exists()


def test_fine_tuning_for_ms_ssim(
    photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The objective is kept in the checkpoint; journal and log tell MS-SSIM beside PSNR."""
    folder = tmp_path / "large"
    folder.mkdir()
    with Image.open(photos / "a.png") as photo:
        photo.resize((260, 200)).save(folder / "a.png")
    out = tmp_path / "tuned.pt"
    command = ["train", "--images", str(folder), "--out", str(out), "--device", "cpu"]
    command += ["--resume", str(trained)]
    assert main([*command, "--objective", "msssim"]) == 1
    assert "size 64 is too small for the objective msssim" in capsys.readouterr().err
    command += ["--restart", "--steps", "2", "--objective", "msssim", "--valid", str(folder)]
    command += ["--batch", "1"]
    assert main([*command, "--size", "128"]) == 1
    assert "size 128 is too small for the objective msssim" in capsys.readouterr().err
    assert main([*command, "--size", "192"]) == 0
    assert "MS-SSIM" in capsys.readouterr().out
    saved, step = SavedRun.load(out).progress()
    assert (saved.objective, saved.size, step) == ("msssim", 192, 2)
    (row,) = [json.loads(line) for line in out.with_suffix(".log.jsonl").read_text().splitlines()]
    assert all(len(pair) == 2 for pair in row["validation"].values())
    for plain, decibels in row["validation_ms_ssim"].values():
        assert decibels == pytest.approx(ms_ssim_db(plain), abs=0.01)


def test_resume_takes_its_options_from_the_checkpoint(
    photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "more.pt"
    command = ["train", "--images", str(photos), "--out", str(out), "--device", "cpu"]
    command += ["--resume", str(trained)]
    for option, value in (("batch", 3), ("size", 128), ("learning-rate", 0.5), ("seed", 1)):
        assert main([*command, f"--{option}", str(value)]) == 1
        err = capsys.readouterr().err
        assert f"--{option} {value}: {trained} was trained with" in err
        assert err.count("\n") == 1
    assert main([*command, "--steps", "29"]) == 1
    assert "has reached step 30 already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, "--batch", "2", "--size", "64", "--steps", "31"]) == 0
    state = load_checkpoint(out)
    assert state["step"] == 31
    assert state["options"] == {**OPTIONS.__dict__, "steps": 31}
    rate = TrainingOptions(**state["options"]).rate(30)
    assert state["optimiser"]["param_groups"][0]["lr"] == rate


def test_restart_takes_new_options(photos: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "more.pt"
    command = ["train", "--images", str(photos), "--out", str(out), "--device", "cpu", "--restart"]
    assert main(command) == 1
    command += ["--resume", str(trained), "--steps", "1", "--batch", "1", "--size", "64"]
    assert main(command) == 0
    state = load_checkpoint(out)
    assert state["step"] == 1
    assert TrainingOptions(**state["options"]) == TrainingOptions(
        steps=1, batch=1, size=64, final_size=128, learning_rate=2e-4
    )


def test_train_command_trains_without_valid(photos: Path, tmp_path: Path) -> None:
    out, release = tmp_path / "x.pt", tmp_path / "release.pt"
    command = ["train", "--images", str(photos), "--out", str(out), "--device", "cpu"]
    command += ["--steps", "1", "--batch", "1", "--size", "64", "--export", str(release)]
    assert main(command) == 0
    assert load_checkpoint(out)["step"] == 1
    assert load_codec(release).cfg == CodecConfig()


def test_train_command_refuses_at_once_what_it_cannot_write(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "taken.log.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    command = ["train", "--images", str(photos), "--steps", "1", "--device", "cpu"]
    for out, message in (
        (tmp_path / "none" / "x.pt", "no such folder"),
        (tmp_path / "folder.pt", "is a folder"),
        (tmp_path / "taken.pt", "is a folder"),
        (tmp_path / ("x" * 250), "cannot be written"),
        (Path("/dev/null"), "not a regular file"),
    ):
        assert main([*command, "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "x.pt"), "--export", "/dev/null"]) == 1
    assert "not a regular file" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_train_command_says_what_is_wrong(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.pt")
    assert main(["train", "--images", str(tmp_path / "none"), "--out", out]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["train", "--images", str(photos), "--out", out, "--size", "100"]) == 1
    assert "multiple of 64" in capsys.readouterr().err
    assert main(["train", "--images", str(photos), "--out", out, "--learning-rate", "nan"]) == 1
    assert "learning_rate cannot be nan" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_checkpoint_from_before_the_objective_resumes_as_mse(trained: Path, tmp_path: Path) -> None:
    options = {k: v for k, v in load_checkpoint(trained)["options"].items() if k != "objective"}
    old = changed(trained, tmp_path / "old.pt", options=options)
    assert SavedRun.load(old).progress() == (OPTIONS, 30)


def test_resume_reads_the_checkpoint_once(
    photos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path, **options: Any) -> Any:
        read.append(path)
        return original(path, **options)

    original = torch.load
    monkeypatch.setattr(torch, "load", counted)
    command = ["train", "--images", str(photos), "--out", str(tmp_path / "x.pt")]
    command += ["--device", "cpu", "--resume", str(trained), "--steps"]
    assert main([*command, "31"]) == 0
    assert main([*command, "1", "--restart", "--batch", "1", "--size", "64"]) == 0
    assert read == [trained, trained]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own imports
def test_compile_without_a_compiler_ends_in_one_line(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    command = ["train", "--images", str(photos), "--out", str(tmp_path / "x.pt")]
    assert main([*command, "--device", "cpu", "--compile"]) == 1
    err = capsys.readouterr().err
    assert "install a C++ compiler such as g++, or leave out --compile" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_schedule_ends_with_blocks_that_round(photos: Path, tmp_path: Path) -> None:
    """Through a stop within its last part, the run is what it is without one."""
    options = replace(OPTIONS, steps=12, batch=1, final_size=64, rounding_share=0.5)
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    loaded = load_photos([photos])
    start: dict[str, torch.Tensor] = {}
    for out in (whole, part):
        trainer = Trainer(options, out, torch.device("cpu"), config=LAPPED)
        trainer.start_from_photos(loaded)
        # What solves for the latents of flat cells does not round the same each time.
        trainer.codec.load_state_dict(start := start or trainer._copy())
        trainer.average = trainer._copy()
        if out == part:
            for batch in itertools.islice(trainer._batches(loaded), 8):
                if trainer.step == 6:
                    trainer.begin_rounding(loaded)
                    known = [
                        bool(trainer.optimiser.state.get(p)) for p in trainer.codec.parameters()
                    ]
                trainer._one_step(batch)
            trainer.save()
            assert any(known)
            assert not all(known)
            saved = SavedRun.load(part)
            trainer = Trainer(saved.progress()[0], out, torch.device("cpu"), resume=saved)
        trainer.run(loaded, [], None, io.StringIO())
    a, b = (load_checkpoint(out) for out in (whole, part))
    assert a["rounds"]
    assert b["rounds"]
    assert a["raw"].keys() == b["raw"].keys() > a["weights"].keys()
    # The norm of the gradient is summed in another order.
    assert all(torch.allclose(a["raw"][k], b["raw"][k], atol=1e-5) for k in a["raw"])
    load_codec(whole)


def test_objective_changes_at_a_resume_and_all_else_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    with Image.open(photos / "a.png") as photo:
        photo.resize((300, 280)).save(folder / "a.png")
    out = tmp_path / "run.pt"
    start = {"config": SMALL.to_dict(), "weights": NeuralCodec(SMALL).state_dict()}
    torch.save({"format": FORMAT, **start}, tmp_path / "start.pt")
    command = ["train", "--images", str(folder), "--out", str(out), "--device", "cpu"]
    new = ["--restart", "--size", "192", "--batch", "1", "--steps", "1000", "--minutes", "0.02"]
    # Stopped by the clock, wherever that is.
    assert main([*command, "--resume", str(tmp_path / "start.pt"), *new]) == 0
    before = load_checkpoint(out)
    assert 0 < before["step"] < 700
    steps = ["--steps", str(before["step"] * 2 + 8), "--minutes", "0.02"]
    assert main([*command, "--resume", str(out), "--objective", "visual", *steps]) == 0
    after = load_checkpoint(out)
    assert after["options"]["objective"] == "visual"
    assert after["step"] > before["step"]
    first = next(iter(after["optimiser"]["state"].values()))
    assert float(first["step"]) == after["step"]
    capsys.readouterr()


def test_slim_run_goes_on_where_it_was(photos: Path, trained: Path, tmp_path: Path) -> None:
    slim = tmp_path / "slim.pt"
    slim_checkpoint(trained, slim)
    a, b = load_checkpoint(trained), load_checkpoint(slim)
    assert slim.stat().st_size < 0.72 * trained.stat().st_size
    assert all(torch.equal(a["raw"][k], b["raw"][k]) for k in a["raw"])
    for k, value in a["weights"].items():
        assert torch.allclose(
            b["weights"][k], value, atol=2.0**-8 * float((value - a["raw"][k]).abs().max())
        )
    outs = []
    for start in (trained, slim):
        out = tmp_path / f"{start.stem}-on.pt"
        run(photos, out, resume=start, steps=40)
        outs.append(load_checkpoint(out))
        assert outs[-1]["step"] == 40
    moved = sum(float((outs[0]["raw"][k] - a["raw"][k]).square().sum()) for k in a["raw"])
    apart = sum(float((outs[0]["raw"][k] - outs[1]["raw"][k]).square().sum()) for k in a["raw"])
    assert apart < 0.01 * moved
    export_weights(trained, tmp_path / "release.pt")
    with pytest.raises(ValueError, match="holds weights only"):
        slim_checkpoint(tmp_path / "release.pt", slim)
