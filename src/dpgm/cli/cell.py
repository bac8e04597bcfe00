"""`python -m dpgm.cli.cell COMMAND ...`: a command that a program starts; it ends when its standard input does."""

from __future__ import annotations

import os
import sys
import threading

from dpgm.cli import FAILED, main


def _end_with_starter() -> None:
    """Wait for the starter's end: however it dies, its side of the pipe closes."""
    while os.read(0, 1):
        pass
    os._exit(FAILED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    sys.exit(main())
