"""Errors: every one of the package survives the way out of another process."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import edgecodec
from edgecodec.errors import MissingDependencyError, UnknownPluginError
from edgecodec.runtimes.registry import get_backend

VALUES: dict[str, Any] = {"str": "some words", "float": 0.25, "tuple[str, ...]": ("a", "b")}


def error_classes() -> list[type[BaseException]]:
    """All classes of errors and warnings that modules of the package define."""
    found = set()
    for module in pkgutil.walk_packages(edgecodec.__path__, "edgecodec."):
        if module.name != "edgecodec.__main__":
            names = vars(importlib.import_module(module.name))
            found |= {c for c in names.values() if inspect.isclass(c)}
    return sorted(
        (c for c in found if issubclass(c, BaseException) and c.__module__.startswith("edgecodec")),
        key=lambda c: c.__name__,
    )


def made(kind: type[BaseException]) -> BaseException:
    """One of a class, with arguments of the kinds that its constructor names."""
    if not inspect.isfunction(kind.__init__):
        return kind("some words")
    parameters = inspect.signature(kind).parameters.values()
    return kind(*(VALUES.get(str(p.annotation), OSError(28, "no room")) for p in parameters))


def test_all_errors_are_found() -> None:
    assert {"ModelMismatchError", "ParityError", "Failure", "Terminated"} <= {
        kind.__name__ for kind in error_classes()
    }


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: str(kind.__name__))
def test_every_error_can_be_pickled_and_copied(kind: type[BaseException]) -> None:
    error = made(kind)
    error.add_note("seen on the way")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)]
    for other in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert (str(other), other.args) == (str(error), error.args)
        assert vars(other).keys() == vars(error).keys()
        assert all(str(vars(other)[name]) == str(value) for name, value in vars(error).items())


def test_what_an_import_error_knows_stays() -> None:
    error = pickle.loads(pickle.dumps(MissingDependencyError("openvino", "convert")))
    assert (error.name, error.package, error.extra) == ("openvino", "openvino", "convert")
    assert error.msg == str(error)


def test_process_pools_end_with_the_error() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pending = pool.apply_async(get_backend, ("imaginary",))
        with pytest.raises(UnknownPluginError, match="no backend named 'imaginary'") as caught:
            pending.get(60)
        assert caught.value.name == "imaginary"
    with (
        ProcessPoolExecutor(1, context) as executor,
        pytest.raises(UnknownPluginError, match="no backend named 'imaginary'"),
    ):
        executor.submit(get_backend, "imaginary").result(60)
