"""Work that several gloo processes do together.

Each process computes its share of the same batches, so that one process alone, with all of a batch, must come to the
same losses, gradients and files.
"""

import multiprocessing
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


def in_processes(task, processes, *arguments):
    """Run a function in so many new processes, which are one group; return what each found.

    Not in forks of this process: what libraries have started threads for waits for ever in a child.
    """
    store = Path(tempfile.mkdtemp()) / "store"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_in_group, task, arguments, store, rank, processes) for rank in range(processes)]
        return [each.result(timeout=300) for each in running]


def _in_group(task, arguments, store, rank, processes):
    warnings.simplefilter("default")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, and not used: the group is there
    with group(init_method=f"file://{store}", rank=rank, world_size=processes):
        return task(*arguments)


@contextmanager
def group(**options):
    """Be a process of a gloo group; without options, as `torchrun` says."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **options)
    yield
    dist.barrier()
    dist.destroy_process_group()


def share(batch):
    """Return this process's part of a batch, a tensor or a mapping of some."""
    if isinstance(batch, dict):
        return {name: share(tensor) for name, tensor in batch.items()}
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def mean(value):
    """Return the mean of a number over the processes."""
    total = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard(model: nn.Module, blocks):
    """Shard a model by FSDP2, each block by itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def let_accelerate_shard_on_cpus():
    """Let `accelerate` use FSDP on CPUs: it does so on accelerators only, and DistributedDataParallel elsewhere."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    initialise = AcceleratorState.__init__

    def with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = with_plugin
