"""The cache of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecodec.errors import ConfigError
from edgecodec.evaluation.cache import ResultCache


def test_result_cache_keeps_entries_between_runs(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    cache = ResultCache(path)
    assert cache.get("key") is None
    cache.put("key", {"bytes": 3})
    cache.save()
    assert ResultCache(path).get("key") == {"bytes": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["cache.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99, "results": {}}', '{"format": 1}'])
def test_result_cache_refuses_other_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"cache\.json"):
        ResultCache(path)
