"""What must be done before anything slow is imported: PyTorch takes seconds, in which a user may press Ctrl-C."""

import os
import signal
import sys
from pathlib import Path


def _is_the_command() -> bool:
    """Return whether this process is the command `adapterx`, or `python -m adapterx.cli`, and not a user's program."""
    started = sys.argv[0] if sys.argv else ""  # "-m" while the packages around a module are imported
    return Path(started).stem == "adapterx" or (started == "-m" and "adapterx.cli" in sys.orig_argv)


def _end_at_once(*_: object) -> None:
    # An exception would print the traceback of an import, or be swallowed by it, and there is nothing to tidy up yet.
    os.write(2, b"error: interrupted\n")
    os._exit(128 + signal.SIGINT)


if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)  # until `adapterx.cli.process.ready`
