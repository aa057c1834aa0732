"""Bottleneck adapters as a method of PEFT: importing this registers `BottleneckConfig` with `peft`."""

import adapterx.integrations.peft.requirements  # noqa: F401 - first, for it refuses a peft that is too old
from adapterx.integrations.peft.beside import register_neighbours
from adapterx.integrations.peft.config import BottleneckConfig
from adapterx.integrations.peft.tuner import BottleneckModel, register
from adapterx.integrations.peft_files import from_peft, to_peft

register()
register_neighbours()

__all__ = ["BottleneckConfig", "BottleneckModel", "from_peft", "to_peft"]
