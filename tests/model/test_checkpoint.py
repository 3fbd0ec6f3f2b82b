"""What is told of files that are no checkpoints: what they are, and what to do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecodec.model.checkpoint import load_checkpoint


def save_safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def save_part(path: Path) -> None:
    path.write_bytes(b"PK\3\4 and no more")


def save_script(path: Path) -> None:
    torch.jit.script(nn.Conv2d(1, 1, 1)).save(str(path))  # type: ignore[no-untyped-call]


def save_program(path: Path) -> None:
    program = torch.export.export(nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 2, 2),))
    with path.open("wb") as file:  # to a path torch writes .pt2 alone without a warning
        torch.export.save(program, file)


def save_older_program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")


def state(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in nn.Conv2d(1, 1, 1).state_dict().items()}


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "safetensors": (save_safetensors, r"\(a safetensors file, weights without.*load it in a"),
    "module": (
        lambda path: torch.save(nn.Conv2d(1, 1, 1), path),
        r"\(a whole module or other objects.*save its state_dict\(\)",
    ),
    "module_in_a_dictionary": (
        lambda path: torch.save({"model": nn.Conv2d(1, 1, 1)}, path), "a whole module or other"
    ),
    "program": (save_program, r"\(a program of torch.export: make the network itself and load"),
    "older_program": (save_older_program, r"\(a program of torch.export: make the network"),
    "script": (save_script, "a TorchScript archive: make the network itself"),
    "state": (
        lambda path: torch.save(state(""), path),
        "but a state dict, weights without their network; codecs trained elsewhere",
    ),
    "parallel": (
        lambda path: torch.save(state("module."), path),
        r"torch.nn.DataParallel put 'module.' before .*k.removeprefix\('module.'\)",
    ),
    "compiled": (
        lambda path: torch.save({"state_dict": state("_orig_mod."), "epoch": 3}, path),
        "a state dict under 'state_dict'.*torch.compile put '_orig_mod.' before",
    ),
    "something": (lambda path: torch.save([1, 2], path), "train`\\); codecs trained elsewhere"),
    "cut": (save_part, "or damaged"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and still about
@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_foreign_files_are_told_apart(name: str, tmp_path: Path) -> None:
    save, said = FOREIGN[name]
    path = tmp_path / "codec.pt"
    save(path)
    with pytest.raises(ValueError, match=said) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
