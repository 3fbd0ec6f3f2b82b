"""Compare designs of the codec at an equal training budget (docs/experiments.md, experiment 4).

    python docs/training/compare_designs.py --images train-0.tar --valid valid.tar --out FOLDER \
        [--steps 1500] [--only NAME ...]

Every design is trained alone from the same crops on the same schedule and judged on the validation
photos; results are added to FOLDER/results.jsonl as they come. In the end all that are there are
printed: thousands of multiply-accumulates per pixel, milliseconds of the fp32 networks for a
picture of 768 x 512 with two threads on the fastest backend, and BD-rate against the first.
Designs that are not in the product are made here by replacing a method. `--only` without names
prints alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from edgecodec.converters.checks.run_artefact import running
from edgecodec.converters.sources.source import Source, read_source
from edgecodec.converters.writers.targets import TARGETS
from edgecodec.evaluation.metrics import bd_rate
from edgecodec.format import tables as fixed
from edgecodec.format.strides import HYPER_STRIDE, LATENT_STRIDE
from edgecodec.model.config import CodecConfig
from edgecodec.model.network import IntegerHyperSynthesis, NeuralCodec, multiply_accumulates
from edgecodec.model.quantizers import round_clip
from edgecodec.runtimes.base import STAGES, Artefact, StageName
from edgecodec.runtimes.selection.timing import time_side_by_side
from edgecodec.training.photos import load_photos
from edgecodec.training.train import Trainer, TrainingOptions

_parameters_of = IntegerHyperSynthesis.parameters_of


def _no_context(
    self: IntegerHyperSynthesis, features: Tensor, before: list[Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    return _parameters_of(self, features, [], bias)


def _no_mean(
    self: IntegerHyperSynthesis, features: Tensor, before: list[Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    mu, index = _parameters_of(self, features, before, bias)
    return torch.zeros_like(mu), index


def _plain_features(self: IntegerHyperSynthesis, z_fix: Tensor, bias: Tensor) -> Tensor:
    """The dequantized hyper-latents themselves, the same for the four latents of a cell."""
    return torch.nn.functional.interpolate(z_fix, scale_factor=2) + 0.0 * bias.sum()


def _sent_scales(
    self: IntegerHyperSynthesis, features: Tensor, before: list[Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale indexes as sent, one per group of latent channels: no network, no mean."""
    m = self.latent_channels
    group = torch.arange(m) * features.shape[1] // m
    unit = 2.0**fixed.HEAD_GAIN_LOG2
    centre = (self.heads.bias[m:] + bias)[:, :, None, None] * unit
    index = centre + features[:, group] * 4.0
    mu = torch.zeros_like(index)
    return mu, round_clip(index, 0, 0, fixed.SCALE_LEVELS - 1)


@dataclass(frozen=True)
class Design:
    """A configuration, and methods of the hyper-synthesis replaced."""

    config: dict[str, int] = field(default_factory=dict)
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    random_start: bool = False


DESIGNS = {
    "shipped": Design(),
    "random start": Design(random_start=True),
    "no context": Design(methods={"parameters_of": _no_context}),
    "no mean": Design(methods={"parameters_of": _no_mean}),
    "scales sent": Design(methods={"parameters_of": _sent_scales, "features": _plain_features}),
    "192 latents": Design({"latent_channels": 192, "coarse_channels": 192}),
    "fine 2, coarse 2": Design({"fine_blocks": 2, "coarse_blocks": 2}),
    "fine 2, coarse 1": Design({"fine_blocks": 2, "coarse_blocks": 1}),
}


def train_design(
    design: Design, options: TrainingOptions, out: Path, photos: list[Any], valid: list[Any]
) -> dict[str, Any]:
    """Train one design and return its validation, time and complexity."""
    config = CodecConfig(**design.config)
    with contextlib.ExitStack() as stack:
        for name, method in design.methods.items():
            stack.enter_context(patch.object(IntegerHyperSynthesis, name, method))
        trainer = Trainer(options, out, torch.device("cpu"), config=config)
        if not design.random_start:
            trainer.start_from_photos(photos)
        trainer.run(photos, valid, None, sys.stderr)
        result = trainer._validation(valid)
    codec: NeuralCodec = trainer.codec
    cost = {
        "g_a": multiply_accumulates(codec.g_a, 1),
        "g_s": multiply_accumulates(codec.g_s, LATENT_STRIDE),
    }
    return {"validation": result, "seconds": trainer.seconds, "mac_per_pixel": cost}


def milliseconds(source: Source, stage: StageName) -> float:
    """Return the median time of a stage in fp32, 768 x 512 pixels, two threads, fastest backend."""
    graph = source.graphs[stage]
    name = graph.inputs[0]
    height, width = (512, 768) if stage == "analysis" else (32, 48)
    shape = (1, height, width, graph.values[name].channels)
    inputs = {name: np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = []
        for target in (TARGETS[name] for name in ("onnx", "openvino", "tflite")):
            path = folder / f"{target.name}.{target.suffix}"
            target.load_writer()(source.graphs[stage], path, "fp32")
            artefact = Artefact(stage, target.name, "fp32", path)
            session = stack.enter_context(running(artefact, target.backend, threads=2))
            runs.append(partial(session.run, inputs))
        timings = time_side_by_side(runs, budget_s=6.0)
        return 1e3 * min(t.median_s for t in timings if t.median_s is not None)


def print_table(rows: list[dict[str, Any]], out: Path) -> None:
    """Print all designs there are results of."""
    curves = {
        r["design"]: list(zip(*sorted(r["validation"].values()), strict=True))[:2] for r in rows
    }
    print("design             kMAC/px g_a, g_s   ms analysis, synthesis   BD-rate")
    for row in rows:
        source = read_source(_checkpoint(out, row["design"]))
        times = "   ".join(f"{milliseconds(source, stage):5.1f}" for stage in STAGES)
        cost = "   ".join(f"{row['mac_per_pixel'][n] / 1e3:5.2f}" for n in ("g_a", "g_s"))
        rate = bd_rate(*curves[rows[0]["design"]], *curves[row["design"]])
        points = "  ".join(f"{p[0]:.3f} bpp {p[1]:.2f} dB" for p in row["validation"].values())
        print(f"{row['design']:<18} {cost}   {times}   {rate:+6.1f} %   {points}")


def _checkpoint(out: Path, design: str) -> Path:
    return out / f"{design.replace(' ', '-').replace(',', '')}.pt"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", action="append", required=True, type=Path)
    parser.add_argument("--valid", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="*", choices=DESIGNS, default=list(DESIGNS))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    options = TrainingOptions(
        steps=args.steps, final_share=0.0, warmup=200, ema=0.995, validate_every=args.steps
    )
    results = args.out / "results.jsonl"
    if args.only:
        photos = load_photos(args.images, min_side=options.final_size)
        valid = load_photos([args.valid], min_side=HYPER_STRIDE)[: options.validate_photos]
    for name in args.only:
        row = train_design(DESIGNS[name], options, _checkpoint(args.out, name), photos, valid)
        with results.open("a") as journal:
            print(json.dumps({"design": name, "steps": args.steps, **row}), file=journal)
    print_table([json.loads(line) for line in results.read_text().splitlines()], args.out)


if __name__ == "__main__":
    main()
