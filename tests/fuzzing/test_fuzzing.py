"""A little fuzzing of files and bundles with each run of the tests, more where there is time."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecodec.errors import BitstreamError
from tests.fuzzing import bundles, files, twins
from tests.fuzzing.campaign import Campaign, Finding, Target

LEAST = 400
"""Inputs of each kind with every run of the tests."""


@pytest.fixture(scope="module", params=[files, bundles, twins], ids=["files", "bundles", "twins"])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target[Any]]:
    folder = tmp_path_factory.mktemp("fuzz")
    before = tempfile.tempdir
    yield request.param.targets_in(folder)[0]
    tempfile.tempdir = before


def test_seeds_are_not_refused(target: Target[Any]) -> None:
    outcomes = [target.run(seed) for seed in target.seeds]
    if target.name == "bundles":  # a tuple of what went wrong, by step
        assert not any(any(outcome) for outcome in outcomes)
    if target.name == "twins":
        assert [outcome[0] for outcome in outcomes[::2]] == ["read"] * (len(outcomes) // 2)


@pytest.mark.parametrize("seconds", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_nothing_but_refusals(target: Target[Any], seconds: float) -> None:
    campaign = Campaign(target, seed=1000)
    campaign.run(LEAST)  # however busy the machine is
    campaign.run(10**9, until=time.monotonic() + seconds)
    assert campaign.executions >= LEAST
    assert len(campaign.corpus) > 20, campaign.executions
    if target.refusals:  # the twins' are compared
        assert 0 < campaign.refused < campaign.executions


def test_campaign_finds_what_is_planted() -> None:
    """Five steps deep, each of which changes where an input ends."""

    def run(case: bytes) -> tuple[object, ...]:
        depth = next((k for k in range(5) if case[k : k + 1] != b"deeps"[k : k + 1]), 5)
        if depth == 5:
            raise KeyError(case)
        if depth == 0:
            raise BitstreamError("refused")
        return (depth,)

    def mutate(source: random.Random, case: bytes) -> bytes:
        at = source.randrange(5)
        return case[:at] + bytes([source.randrange(97, 123)]) + case[at + 1 :]

    def save(path: Path, case: bytes) -> None:
        raise AssertionError(path, case)

    target = Target("planted", [b"xxxxx"], mutate, run, (BitstreamError,), save)
    campaign = Campaign(target, seed=0)
    with pytest.raises(Finding, match="KeyError") as caught:
        campaign.run(50_000)
    assert caught.value.case == b"deeps"
    assert 500 < campaign.executions < 50_000  # blindly it would take millions
