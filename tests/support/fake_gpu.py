"""The CPU as a stand-in for a GPU in the benchmarks."""

import csv

import harness

TINY = (6, 8, 2)


def fake_machine(**changes):
    values = {"device": "cpu", "name": "NVIDIA Fake (sm_90)", "slug": "NVIDIA_Fake", "cache_bytes": 0}
    return harness.Machine(**{"sample": harness.host_sampler(), **values, **changes})


def read(folder, name):
    """Return the rows that the stand-in has written, under the name that a GPU would have given them."""
    path = folder / name
    (folder / name.replace("_cuda", "_cpu")).rename(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
