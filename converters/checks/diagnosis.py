"""Which layers of a refused int8 artefact cost most, and what to try."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecodec.bundle.manifest import Precision
from edgecodec.converters.checks.gate import Curves, Gate
from edgecodec.converters.checks.run_artefact import analyser, running, synthesiser
from edgecodec.converters.graph.nodes import Graph
from edgecodec.converters.int8.draft import Draft
from edgecodec.converters.int8.groups import TRUNK, layer_groups, with_group
from edgecodec.converters.sources.photos import ENOUGH_PHOTOS
from edgecodec.converters.writers.targets import Target
from edgecodec.runtimes.base import Artefact, StageName
from edgecodec.text_table import align

PHOTOS = 4
"""How many photos costs are measured on."""
_MOST = 0.5
"""Share of all costs from which on a group is to blame."""
_SHOWN = 5


@dataclass(frozen=True)
class GroupCost:
    """What int8 costs in one group of layers, all others left in float32.

    Attributes:
        group: what it is called.
        layers: its convolutions.
        loss: BD-rate in percent; infinite where the picture is destroyed.
        quality_loss: by the gate's metric, averaged over qualities, whatever the bits.
    """

    group: str
    layers: tuple[str, ...]
    loss: float
    quality_loss: float


@dataclass(frozen=True)
class Diagnosis:
    """What an int8 artefact loses by.

    Attributes:
        target: that was refused.
        stage: likewise.
        photos: costs were measured on.
        loss: BD-rate in percent of the whole stage on these photos.
        costs: of its groups, the largest first.
        advice: what to try, the likeliest first.
    """

    target: str
    stage: StageName
    photos: int
    loss: float
    costs: tuple[GroupCost, ...]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values; None is an infinite loss."""
        costs = [{**asdict(cost), "loss": _finite(cost.loss)} for cost in self.costs]
        return {**asdict(self), "loss": _finite(self.loss), "costs": costs}

    def summary(self) -> str:
        """Return in a few words what costs most."""
        worst = self.costs[0]
        return f"{worst.group} ({_percent(worst.loss)})"

    def lines(self) -> list[str]:
        """Return what a terminal shows."""
        photos = f"{self.photos} photo{'s' * (self.photos != 1)}"
        lines = [
            f"{self.target} int8 {self.stage}: {_percent(self.loss)} on {photos}; "
            "each group of layers alone in int8, all others in float32:"
        ]
        rows = [(_percent(cost.loss), cost.group) for cost in self.costs[:_SHOWN]]
        rest = len(self.costs) - _SHOWN
        if rest > 0:
            rows.append(("", f"and {rest} that cost less (--json has all)"))
        lines += align(rows, left=(1,), indent="  ")
        return [*lines, *(f"  try: {advice}" for advice in self.advice)]


def diagnose(
    stage: StageName,
    target: Target,
    draft: Draft,
    gate: Gate,
    refused: float,
    photos: int,
    progress: Callable[[str], None],
) -> Diagnosis:
    """Measure what each group of layers costs, by real files on the runtime that was refused.

    Args:
        stage: what was refused.
        target: likewise.
        draft: the int8 graph of the stage.
        gate: the reference's files; a few of its photos are used.
        refused: BD-rate in percent for which it was refused.
        photos: how many were given to calibrate on.
        progress: told one line.
    """
    part, groups = gate.part(PHOTOS), layer_groups(draft)
    progress(f"{target.name} int8 {stage}: measuring what each of {len(groups)} groups costs")
    whole = _cost(stage, target, draft.finish(), part)[0]
    costs = []
    for group in groups:
        loss, quality_loss = _cost(stage, target, with_group(draft, group), part)
        costs.append(GroupCost(group.name, group.layers, loss, quality_loss))
    costs.sort(key=lambda cost: (cost.loss, cost.quality_loss), reverse=True)
    advice = advise(target, stage, costs, whole, refused, photos)
    return Diagnosis(target.name, stage, len(part.photos), whole, tuple(costs), advice)


def _cost(stage: StageName, target: Target, graph: Graph, gate: Gate) -> tuple[float, float]:
    """Return BD-rate and mean loss of quality of a graph in the place of the reference's."""
    precision: Precision = "int8" if graph.has_codes else "fp32"
    with tempfile.TemporaryDirectory(prefix="edgecodec-") as folder:
        path = Path(folder) / f"{stage}.{precision}.{target.suffix}"
        target.load_writer()(graph, path, precision)
        with running(Artefact(stage, target.name, precision, path), target.backend) as session:
            if stage == "analysis":
                found = gate.encoded(analyser(session))
            else:
                found = gate.decoded(synthesiser(session))
    return gate.loss(found), _score(gate.points) - _score(found)


def _score(curves: Curves) -> float:
    return float(np.mean([[point.score for point in curve] for curve in curves]))


def advise(
    target: Target,
    stage: str,
    costs: Sequence[GroupCost],
    whole: float,
    refused: float,
    photos: int,
) -> tuple[str, ...]:
    """Return what to try, the likeliest first.

    Args:
        target: whose artefact was refused.
        stage: likewise.
        costs: BD-rate of each group, the largest first.
        whole: of all of them together.
        refused: for which it was refused.
        photos: how many were given to calibrate on.
    """
    found = []
    if photos < ENOUGH_PHOTOS:
        found.append(f"{ENOUGH_PHOTOS} to 40 typical photos (--calibration), not {photos}")
    worst, total = costs[0], sum(max(cost.loss, 0.0) for cost in costs)
    tune = "tuning with `edgecodec train --qat CHECKPOINT`"
    if whole < _MOST * refused < math.inf:
        found.append(
            f"another target, or another version of {target.backend}: on these photos rounding "
            f"costs {_percent(whole)} only"
        )
    elif worst.group == TRUNK:
        found.append(f"{tune}: what is too coarse is the trunk, which all layers share")
    elif math.isinf(worst.loss) or worst.loss >= _MOST * total:
        found.append(f"{tune}, {worst.group} above all: most of the loss is there")
    else:
        found.append(f"{tune}: the loss is spread over {len(costs)} groups")
    found.append(f"fp16 instead of int8 for the {stage}")
    return tuple(found)


def _percent(loss: float) -> str:
    return f"{loss:+.2f} %" if math.isfinite(loss) else "destroyed"


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
