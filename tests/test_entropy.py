"""The entropy coder: C core and NumPy twin agree to the byte, and nothing makes them fall over."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest_paths import CORE
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecodec.entropy import HYPER_LIMIT, SYMBOL_LIMIT, LatentCoder
from edgecodec.errors import BitstreamError, BundleError, ConfigError, TruncatedBitstreamError
from edgecodec.tables import PRECISION
