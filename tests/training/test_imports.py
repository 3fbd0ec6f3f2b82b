from __future__ import annotations

import subprocess
import sys

ALLOWED = {"torch", "numpy", "PIL", "edgecodec"}


def test_training_needs_only_torch_numpy_and_pillow() -> None:
    """GPU hosts often have no package index; whatever else torch brings is torch's affair."""
    code = (
        "import sys, torch, numpy.random, PIL.Image\n"
        "before = set(sys.modules)\n"
        "import edgecodec.training.train\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(*sorted(n for n in new if n not in sys.stdlib_module_names))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(out.stdout.split()) <= ALLOWED
