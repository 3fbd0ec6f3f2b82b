"""The C core as an optional extension: where no compiler is, the NumPy twin serves."""

import sys
from pathlib import Path

from setuptools import Extension, setup

# Errors and traps of floats are not observed; fused multiply-add would make the encoder's
# rounding depend on the machine.
FLAGS = [] if sys.platform == "win32" else [
    "-std=c99", "-O3", "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=off",
]  # fmt: skip

setup(
    ext_modules=[
        Extension(
            "edgecodec.core._binding",
            [f"edgecodec/core/{name}.c" for name in ("binding", "share", "edgecodec_core")],
            depends=sorted(map(str, Path("edgecodec/core").glob("*.h"))),
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
