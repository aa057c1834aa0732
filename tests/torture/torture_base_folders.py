"""Base folders damaged in many ways: a training refuses each in one line or goes on, and never raises or hangs."""

import json
import random
import resource
import shutil
import time
from collections import Counter

import pytest
import tiny_training

pytest.importorskip("transformers")
pytest.importorskip("typer")

from command_line import QUICK
from typer.testing import CliRunner

from adapterx.cli.app import app

STRANGE = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -0.5, "", "x", "[/b]", "\x1b[31m", "\ud800", "../x", [],
    [1], {}, {"a": 1}, [[[]]], "x" * 100_000,
)  # fmt: skip


def damage(draw, content):
    """Return bytes in which something was cut, flipped, repeated, or replaced."""
    kind = draw.randrange(7)
    at = draw.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 8))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 2:
        return content[:at] + bytes(draw.randrange(256) for _ in range(8)) + content[at:]
    if kind == 3:
        return content[at:]
    if kind == 4:
        return content[:at] + content
    if kind == 5:
        return b"[" * 100_000 + content
    return draw.choice(
        (b"", b"\x00" * 4096, b"{}", b"[]", b"null", b"\xff\xfe{\x00}\x00", b'"' + b"x" * 70_000_000 + b'"')
    )


def places_in(value, path=()):
    """Yield the paths of all values in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def altered(draw, content):
    """Return a JSON document in which one value is another one, or is not there."""
    document = json.loads(content)
    *path, last = draw.choice([path for path in places_in(document) if path])
    inner = document
    for key in path:
        inner = inner[key]
    if draw.random() < 0.15:
        del inner[last]
    else:
        inner[last] = draw.choice(STRANGE)
    return json.dumps(document).encode()


def shards(folder):
    """Write the weights of a folder as two files and their index."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_damaged_base_folders(tmp_path, times, figure, sharded):
    whole = tmp_path / "whole"
    whole.mkdir()
    tiny_training.save_tiny_model(whole)
    if sharded:
        shards(whole)
    data = tiny_training.write_csv(tmp_path / "data.csv", tiny_training.sentences(12))
    names = sorted(path.name for path in whole.iterdir())
    draw, outcomes, slowest = random.Random(5), Counter(), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times(400)):
        broken, output = tmp_path / "broken", tmp_path / "output"
        for folder in (broken, output):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, broken)
        path = broken / draw.choice(names)
        content = path.read_bytes()
        if draw.random() < 0.05:
            path.unlink()
        elif path.suffix == ".json" and draw.random() < 0.6:
            path.write_bytes(altered(draw, content))
        else:
            path.write_bytes(damage(draw, content))
        arguments = ["--model", broken, "--data", data, "--output", output, *QUICK, "--epochs", "1"]
        start = time.perf_counter()
        result = CliRunner().invoke(app, ["train", *map(str, arguments)])
        slowest = max(slowest, time.perf_counter() - start)
        outcomes[result.exit_code] += 1
        if result.exit_code not in (0, 2):
            shutil.copytree(broken, tmp_path / f"kept-{outcomes.total()}")
            raise AssertionError(f"{path.name}: {result.output}") from result.exception
        if result.exit_code == 2:
            assert len(result.stderr.splitlines()) == 1, result.stderr
            assert len(result.stderr) < 3000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    figure(f"{outcomes.total()} damaged base folders: {outcomes[2]} refused in one line, {outcomes[0]} trained on, "
           f"slowest {slowest:.1f} s, memory grew by {grown} MiB")  # fmt: skip
