"""Codecs that were not trained here: what the converter asks of them, and how it gets them.

`docs/own-codec.md` is the manual. A codec is named as a function, in a file or a module, that
returns it. That code runs, as the converter's user asked for it; a bundle and a checkpoint file
never run any.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

from torch import nn

from edgecodec.errors import ConversionError
from edgecodec.format.tables import Tables
from edgecodec.model.checkpoint import wrapper_hint

PARTS = ("analysis", "synthesis", "tables")
MANUAL = "docs/own-codec.md"


class TrainedCodec(Protocol):
    """What a codec must have to be converted.

    All tensors are float32 and (1, channels, rows, columns). Height H and width W of a picture
    are any multiples of 32; M and Z, the channels of latents and hyper-latents, are those of the
    tables, 512 at most. Operations are those of `torch_to_graph.SUPPORTED`.

    Attributes:
        analysis: maps x (1, 3, H, W), levels 0..255 in the order R, G, B, to y (1, M, H/16, W/16),
            and to z (1, Z, H/32, W/32) as a second result. Without hyper-latents it returns y
            alone, and the tables have Z = 1.
        synthesis: maps y_hat (1, M, H/16, W/16), in the unit of y and multiples of 1/16, to
            x_hat (1, 3, H, W), levels 0..255 before rounding and clipping.
        tables: the integers that entropy coding is made of, or the bytes of a `tables.bin`.
    """

    @property
    def analysis(self) -> nn.Module: ...  # noqa: D102
    @property
    def synthesis(self) -> nn.Module: ...  # noqa: D102
    @property
    def tables(self) -> Tables | bytes: ...  # noqa: D102


def names_function(text: str) -> bool:
    """Return whether this is `file.py:function` or `package.module:function`, and not a file."""
    module, _, function = text.rpartition(":")
    return bool(module) and function.isidentifier() and not Path(text).exists()


def load_own_codec(text: str) -> TrainedCodec:
    """Import what `names_function` accepts, call the function and return its result.

    What it prints goes to stderr.

    Raises:
        ConversionError: no such file, module or function, an exception of theirs, or a result
            that lacks a part.
    """
    where, _, name = text.rpartition(":")
    with contextlib.redirect_stdout(sys.stderr), _importable(where):
        module = _module(where)
        function = getattr(module, name, None)
        if not callable(function):
            raise ConversionError(f"{where}: has no function {name}")
        try:
            codec: TrainedCodec = function()
            missing = [part for part in PARTS if not hasattr(codec, part)]
        except (Exception, SystemExit) as exc:
            file = module.__file__ or ""
            raise ConversionError(f"{text}: raised {told(exc, file)}") from exc
    if missing:
        kind = type(codec).__name__
        raise ConversionError(f"{text}: gives a {kind} without {', '.join(missing)} ({MANUAL})")
    return codec


@contextlib.contextmanager
def _importable(where: str) -> Iterator[None]:
    """Let code import what lies beside it, or in the current folder."""
    folder = str(Path(where).resolve().parent if where.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _module(where: str) -> ModuleType:
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise ConversionError(f"{where}: no such file")
    try:
        return _from_file(Path(where)) if is_file else importlib.import_module(where)
    except (Exception, SystemExit) as exc:
        absent = isinstance(exc, ModuleNotFoundError) and exc.name is not None
        if absent and not is_file and f"{where}.".startswith(f"{exc.name}."):  # type: ignore[union-attr]
            reason = "no such module; a file is named with its suffix, as codec.py:function"
            raise ConversionError(f"{where}: {reason}") from exc
        file = str(Path(where)) if is_file else ""
        raise ConversionError(f"{where}: cannot be imported, {told(exc, file)}") from exc


def _from_file(path: Path) -> ModuleType:
    name = f"_edgecodec_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look a class's module up by its name
    spec.loader.exec_module(module)
    return module


def told(exc: BaseException, file: str = "") -> str:
    """Return an exception in one line, with the last place in `file`, or anywhere, it went by."""
    said = " ".join(str(exc).split())[:300]
    text = f"{type(exc).__name__}: {said}" if said else type(exc).__name__
    if "Unexpected key(s) in state_dict" in str(exc):
        unexpected = str(exc).partition("Unexpected key(s) in state_dict:")[2]
        text += wrapper_hint(re.findall(r'"([^"]+)"', unexpected.partition("size mismatch")[0]))
    frames = traceback.extract_tb(exc.__traceback__)
    inside = [f for f in frames if Path(f.filename).is_file() and file in ("", f.filename)]
    if inside and not isinstance(exc, SyntaxError):  # which says itself where it is
        text += f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})"
    return text
