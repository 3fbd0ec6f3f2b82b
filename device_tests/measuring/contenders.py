"""What takes part in a benchmark: our codec on a backend, or a classical codec, in one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgecodec.bundle.reading import Bundle
from edgecodec.codec import Codec
from edgecodec.coding.profiling import NETWORK_STAGES, Profile, Span, covered_s
from edgecodec.errors import BackendError, BundleError
from edgecodec.evaluation.classical import classical_codec
from edgecodec.runtimes.base import STAGES, StageName
from edgecodec.runtimes.registry import backend_names, get_backend
from edgecodec.runtimes.selection.choice import describe

UInt8Array = npt.NDArray[np.uint8]
_T = TypeVar("_T")
AUTO = "auto"
ALL = "all"
CLASSICAL_QUALITY = {"jpeg": 80, "webp": 80, "avif": 60, "jxl": 78}
"""Common settings, near the rate of our default quality."""


@dataclass(frozen=True)
class BackendRequest:
    """A backend and a precision, as `--backends` names them: `tflite` or `tflite:int8`."""

    backend: str
    precision: str = AUTO

    @classmethod
    def parse(cls, text: str) -> BackendRequest:
        """Return the request that a text names."""
        backend, _, precision = text.partition(":")
        return cls(backend, precision or AUTO)

    def __str__(self) -> str:
        """Return it as it is named."""
        return self.backend if self.precision == AUTO else f"{self.backend}:{self.precision}"


@dataclass(frozen=True)
class Coded:
    """One picture encoded and decoded.

    Attributes:
        seconds: `encode`, `decode`, and of our codec its stages, as `encode/analysis`; what lies
            between them is `encode/other` and `decode/other`, and the time in which no network
            is at work `outside/encode` and `outside/decode`.
        data: the file.
        spans: the same for a trace: both actions and all their stages, in order of their ends.
    """

    seconds: dict[str, float]
    data: bytes
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Contender:
    """One that takes part.

    Attributes:
        name: in tables.
        settings: what its results depend on: backends, precisions, libraries, options.
        encode: picture (H, W, 3) uint8 to file; of our codec with a profile to fill.
        decode: file to picture.
        ours: whether it has stages.
        request: what was asked for; None for classical codecs.
    """

    name: str
    settings: dict[str, Any]
    encode: Callable[..., bytes]
    decode: Callable[..., object]
    ours: bool = False
    request: BackendRequest | None = None

    def once(self, pixels: UInt8Array) -> Coded:
        """Encode and decode a picture once, timing all of it."""
        data, encode_s, coding = self._timed("encode", self.encode, pixels)
        _, decode_s, decoding = self._timed("decode", self.decode, data)
        return Coded({**encode_s, **decode_s}, data, (*coding, *decoding))

    def _timed(
        self, action: str, call: Callable[..., _T], argument: object
    ) -> tuple[_T, dict[str, float], list[Span]]:
        profile = Profile()
        with profile.stage(action):
            result = call(argument, profile=profile) if self.ours else call(argument)
        *stages, whole = profile.spans
        whole_s = whole.end_s - whole.start_s
        if not self.ours:
            return result, {action: whole_s}, profile.spans
        seconds = {f"{action}/{name}": s for name, s in profile.seconds.items() if name != action}
        seconds[f"{action}/other"] = max(0.0, whole_s - covered_s(stages))
        networks = covered_s(span for span in stages if span.name in NETWORK_STAGES)
        seconds[f"outside/{action}"] = max(0.0, whole_s - networks)
        return result, {action: whole_s, **seconds}, profile.spans


def used(choice: Mapping[str, Any]) -> str:
    """Return what ran a stage, from what a report holds of it; see `describe`."""
    return describe(choice["backend"], choice["precision"], choice.get("threads"))


def used_by(settings: Mapping[str, Any]) -> str:
    """Return what ran the stages of one of ours."""
    return " / ".join(used(settings[stage]) for stage in STAGES)


def expand_requests(names: Sequence[str], bundle: Bundle) -> list[BackendRequest]:
    """Return what `--backends` names; `all` is `auto` and each artefact on its backend."""
    found: list[BackendRequest] = []
    for name in names:
        if name != ALL:
            found.append(BackendRequest.parse(name))
            continue
        found.append(BackendRequest(AUTO))
        for backend in backend_names():
            held = {e.precision for e in bundle.manifest.artefacts if e.target == _target(backend)}
            # What the bundle holds nothing for is named once, with that as the reason.
            found += [BackendRequest(backend, p) for p in sorted(held) or ("fp32",)]
    return list(dict.fromkeys(found))


def _target(backend: str) -> str:
    """Return what artefacts a backend takes; empty where it does not load, which is told later."""
    try:
        return get_backend(backend).target
    except BackendError:
        return ""


def open_codecs(
    requests: Sequence[BackendRequest], bundle: Bundle, threads: int | None, sessions: ExitStack
) -> tuple[dict[BackendRequest, Codec], dict[str, str]]:
    """Return a codec for each request that works here, and why the others do not.

    Args:
        requests: what to open.
        bundle: the model.
        threads: for the runtimes; None leaves it to them.
        sessions: closes the codecs.

    Raises:
        UnknownPluginError: no backend of that name.
    """
    codecs: dict[BackendRequest, Codec] = {}
    skipped: dict[str, str] = {}
    for request in requests:
        codec = Codec(bundle, request.backend, request.precision, threads)
        sessions.callback(codec.close)
        problems = open_stages(codec)
        if problems:
            skipped[str(request)] = next(iter(problems.values()))
        else:
            codecs[request] = codec
    return codecs, skipped


def open_stages(codec: Codec, stages: Sequence[StageName] = STAGES) -> dict[StageName, str]:
    """Open what runs each stage; return why some cannot run here.

    Raises:
        UnknownPluginError: no backend of that name.
    """
    problems: dict[StageName, str] = {}
    for stage in stages:
        try:
            codec.choice(stage)
        except (BackendError, BundleError) as exc:
            problems[stage] = str(exc)
    return problems


def our_contender(request: BackendRequest, codec: Codec, quality: int) -> Contender:
    """Return our codec as one that takes part."""
    settings: dict[str, Any] = {"quality": quality, "entropy_coder": codec.coder.implementation}
    for stage in STAGES:
        settings[stage] = asdict(codec.choice(stage))
    return Contender(
        name=str(request),
        settings=settings,
        encode=partial(codec.encode, quality=quality),
        decode=codec.decode,
        ours=True,
        request=request,
    )


def classical_contender(name: str) -> Contender:
    """Return a classical codec as one that takes part.

    Raises:
        UnknownPluginError: there is none of that name.
        BackendUnavailableError: this Pillow lacks the format.
    """
    codec, quality = classical_codec(name), CLASSICAL_QUALITY[name]
    return Contender(
        name=name,
        settings={"quality": quality, "library": codec.settings},
        encode=partial(codec.encode, quality=quality),
        decode=codec.decode,
    )
