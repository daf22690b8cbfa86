"""``python -m ipcbus`` is the command ``ipcbus``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from .cli.main import main

    sys.exit(main())
