"""Refuse a peft that the plugin cannot be registered with, before anything of it is imported."""

from adapterx.errors import ExtensionError

OLDEST = (0, 21)

try:
    import peft
except ImportError as error:
    raise ExtensionError(
        f"adapterx.integrations.peft: peft must be installed ({error}): pip install 'adapterx[peft]'"
    ) from error

if tuple(int(part) for part in peft.__version__.split(".")[:2]) < OLDEST:
    raise ExtensionError(
        f"adapterx.integrations.peft: peft must be at least 0.21, got {peft.__version__}, which saves and loads its "
        "own methods only: pip install 'adapterx[peft]'"
    )
