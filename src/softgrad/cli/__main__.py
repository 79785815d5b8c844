"""``python -m softgrad.cli``."""

from __future__ import annotations

import sys

from softgrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
