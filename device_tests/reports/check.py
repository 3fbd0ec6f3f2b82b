"""Whether a report that was read holds what a comparison needs: files are cut and edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgecodec.device_tests.measuring.contenders import used_by


def check_report(report: Mapping[str, Any]) -> str:
    """Return what is wrong with a benchmark as `BenchReport.to_dict` gives it, empty for nothing.

    Args:
        report: JSON values.
    """
    try:
        _check_facts(report)
        pictures = {image["name"]: image["sha256"] for image in report["images"]}
        codecs = {_check_contender(contender) for contender in report["contenders"]}
        for measured in report["measurements"]:
            what = f"{measured['codec']} on {measured['image']}"
            if measured["codec"] not in codecs or measured["image"] not in pictures:
                raise ValueError(f"{what}: of nothing that is listed")
            for stage, seconds in measured["stages_s"].items():
                _check_series(f"{what}, {stage}", measured["starts_s"], seconds)
        for fixed in report["yardsticks"]:
            _check_series(f"{fixed['name']} ({fixed['settings']})", fixed["starts_s"],
                          fixed["seconds"])  # fmt: skip
        for summary in report["summaries"]:
            hash((summary["codec"], summary["stage"]))
    except KeyError as exc:
        return f"it has no {exc.args[0]!r}"
    except (TypeError, AttributeError) as exc:
        return f"a part is of another kind ({exc})"
    except ValueError as exc:
        return str(exc)
    return ""


def _check_facts(report: Mapping[str, Any]) -> None:
    for place, names in (
        ("device", ("system", "python", "governor")),
        ("conditions", ("threads", "cores")),
    ):
        for name in names:
            report[place][name]
    report["device"]["packages"].items()
    report["conditions"]["bundle"]["files"]
    report["identity"].items()


def _check_contender(contender: Mapping[str, Any]) -> str:
    name, settings = contender["codec"], contender["settings"]
    hash((name, settings["quality"]))
    if contender["ours"]:
        used_by(settings)
    else:
        settings["library"]
    return str(name)


def _check_series(what: str, starts: Any, seconds: Any) -> None:
    """Refuse samples that are none.

    Raises:
        ValueError: there are none, a moment is missing, or one is no number of seconds.
    """
    if not isinstance(seconds, list) or not isinstance(starts, list) or not seconds:
        raise ValueError(f"{what}: no samples")
    if len(starts) != len(seconds):
        raise ValueError(f"{what}: {len(seconds)} samples of {len(starts)} runs")
    for value in (*starts, *seconds):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"{what}: {value!r} is no number of seconds")
