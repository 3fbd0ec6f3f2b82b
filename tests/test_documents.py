"""Documents at the root: links lead to files, the README names all commands and two set-ups.

Links between the pages of `docs/` are checked by `mkdocs build --strict`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgecodec.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

if not (ROOT / "README.md").is_file():
    pytest.skip("no source tree here", allow_module_level=True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    lost = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not lost


def test_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"edgecodec {name}" not in text] == []


def test_readme_has_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert sum(block.count("python3 -m venv") for block in blocks) == 2
