from __future__ import annotations

from pathlib import Path

import pytest

from edgecodec.converters.sources.source import read_source
from edgecodec.errors import ConversionError
from edgecodec.model.checkpoint import FORMAT, save_checkpoint
from edgecodec.model.network import NeuralCodec
from tests.training.conftest import LAPPED


def test_codec_whose_entropy_model_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    """Converted as if it had none of it, its files would decode to something else."""
    codec = NeuralCodec(LAPPED)
    path = tmp_path / "second.pt"
    save_checkpoint(
        path, {"format": FORMAT, "config": LAPPED.to_dict(), "weights": codec.state_dict()}
    )
    with pytest.raises(ConversionError, match="version 2 of the file format"):
        read_source(str(path))
