"""The command `adapterx`. Importing this package stays light: what a command needs is imported when it runs."""

import os
import sys

from adapterx.cli import process


def main() -> None:
    """Run the command line; a missing extra is named, not shown as a traceback."""
    # Tokenizers warn about forked processes unless this is decided beforehand.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with process.prepared():
        try:
            from adapterx.cli.app import app
        except ImportError as error:
            if (error.name or "").split(".")[0] not in {"typer", "rich"}:
                raise
            print(f"error: the command line needs {error.name}: pip install 'adapterx[train]'", file=sys.stderr)
            raise SystemExit(2) from None
        process.ready()
        app()
