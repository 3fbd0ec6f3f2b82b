"""One interface over the neural runtimes, and the choice among them by measurement.

Importing this package imports no runtime; each is loaded when it is first used.
"""

from __future__ import annotations

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
