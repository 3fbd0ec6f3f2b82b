"""The smoke test passes here, and fails where something else than a refusal comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from edgecodec.codec import Codec
from edgecodec.device_tests.conformance.robustness import FILES, FLIPS, check_robustness


def test_this_machine_refuses_what_it_must() -> None:
    report = check_robustness(threads=1)
    assert report.passed, report.text()
    assert report.checks["with a bit flipped"] == FILES * FLIPS
    assert {"of another model", "bundle cut short", "claiming to be huge"} <= set(report.checks)
    assert report.to_dict()["passed"] is True
    assert report.text().endswith("robustness passed")


@pytest.mark.parametrize("error", [IndexError("beyond"), MemoryError(), None])
def test_anything_else_fails(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Codec, data: bytes, **options: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(Codec, "decode", careless)
    report = check_robustness(threads=1)
    assert not report.passed
    assert (type(error).__name__ if error else "as if nothing were wrong") in report.text()


def test_nothing_to_check_with_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecodec.errors import BackendError

    def broken(self: Codec, stage: Any) -> Any:
        raise BackendError(self.settings.backend, "broken")

    monkeypatch.setattr(Codec, "choice", broken)
    report = check_robustness(threads=1)
    assert not report.passed
    assert "no backend works" in report.text()
