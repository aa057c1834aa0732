"""Documents as somebody would write them who knows the format and means harm; every hash in them is right."""

import hashlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from adapterx.checkpoint.document import HASH, hashed

WORDS = (
    "", " ", "\x00", "\x1b[2J", "\n", "..", "../../etc/passwd", "/dev/zero", "C:\\", "a.b", "adapterx", "weight",
    "\ud800",
    "\U0001f600" * 9, "\ufb00", "x" * 5_000, "0", "1", "None", "true", "1e400", "__class__", "forward", "(a+)+$",
    "(" * 5_000, "(" * 900 + ")" * 900, "[" * 50, "a{99999999999}",
)  # fmt: skip
HEAVY = ("x" * 10**6, "\U0001f600" * 10**6, "a." * 50_000 + "a", "(?i)" + "[\x00-\U0010ffff]" * 300, "a|" * 2**19)
NUMBERS = (
    0, 1, -1, 2, 7, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**9, 10**308, 10**400,
    -(10**400), 10**4299, 0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 1e-308, 5e-324, 1e22, 1e308, -1e308,
)  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _values(draw: random.Random) -> Any:
    heavy = draw.random() < 0.03
    size = draw.choice((100_000, 1_000_000)) if heavy else draw.choice((3, 100))
    kinds = (
        lambda: draw.choice((None, True, False, [], {}, [[]], {"": {}})),
        lambda: draw.choice(HEAVY if heavy else WORDS),
        lambda: draw.choice(NUMBERS),
        lambda: _nested(draw.choice((3, 60, 90))),
        lambda: draw.choice((list(range(size)), ["a"] * size)),
        lambda: [[] for _ in range(size)],
        lambda: dict.fromkeys(map(str, range(size))),
        lambda: {str(key): {} for key in range(size)},
    )
    return draw.choice(kinds[:4] * 2 + kinds)()


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a document: what holds it, and its key there."""
    found, left = [], [value]
    while left:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
    return found


def _replace(holder, key, draw):
    holder[key] = _values(draw)


def _resemble(holder, key, draw):
    """Turn a value into one of another type that looks like it."""
    value = holder[key]
    alike = [str(value), [value], {"value": value}, json.dumps(value)]
    if isinstance(value, (bool, int, float)) and abs(value) < 1e300:
        alike += [int(value), float(value), bool(value), -value, value + 1, value - 1, value * 2, value * 10**6]
    if isinstance(value, str):
        alike += [value + ".", value + " ", "." + value, value.upper(), value[:-1], f"{value}.{value}", value[::-1]]
        alike += [value.replace(".", ".."), value.partition(".")[2], f"encoder.{value}", list(value), value + "\x00"]
        alike += [re.sub(r"\d", lambda digit: str(int(digit[0]) + 1), value)]
    if isinstance(value, list):
        alike += [
            value[1:],
            value * 2,
            value[::-1],
            {str(number): each for number, each in enumerate(value)},
            [*value, None],
        ]
    if isinstance(value, dict):
        alike += [list(value), list(value.values()), dict(reversed(value.items()))]
    holder[key] = draw.choice(alike)


def _remove(holder, key, draw):
    del holder[key]


def _rename(holder, key, draw):
    if isinstance(holder, dict):
        box = {"key": key}
        _resemble(box, "key", draw)
        holder[str(draw.choice((box["key"], draw.choice(WORDS))))] = holder.pop(key)


def _add(holder, key, draw):
    if isinstance(holder, dict):
        holder[draw.choice((*WORDS, *map(str, range(9)), "dtype", "sha256", "name", "peft_type"))] = _values(draw)
    else:
        holder.append(_values(draw))


def _swap(holder, key, draw):
    other = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


CHANGES = (_replace, _replace, _resemble, _resemble, _resemble, _remove, _rename, _add, _swap)


def _change_tensors(document: dict[str, Any], path: Path, draw: random.Random) -> str:
    """Change the tensors, and all that the document says of them."""
    tensors = load_file(path)
    if not tensors:
        return "nothing is left"
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    names = (
        f"{name}.",
        name.replace("0", "1"),
        name.partition(".")[2] or "x",
        f"encoder.{name}",
        "x" * 9_999,
        "../x",
        "",
    )
    how = draw.choice(("drop", "rename", "reshape", "dtype", "nan", "add", "large", "many"))
    if how == "drop":
        del tensors[name]
    elif how == "rename":
        tensors[draw.choice(names)] = tensors.pop(name)
    elif how == "reshape":
        tensors[name] = tensor.reshape(draw.choice(((-1,), (1, *tensor.shape), (*tensor.shape, 1), tensor.shape[::-1])))
    elif how == "dtype":
        tensors[name] = tensor.to(draw.choice((torch.int64, torch.float16, torch.bool, torch.float64, torch.uint8)))
    elif how == "nan":
        tensors[name] = torch.full_like(tensor, draw.choice((float("nan"), float("inf"), 3e38)))
    elif how == "add":
        tensors[draw.choice(names)] = torch.zeros(2)
    elif how == "large":
        tensors[name] = torch.zeros(2**20)
    else:
        tensors |= {f"{name}.{number}": torch.zeros(1) for number in range(500)}
    content = save(tensors)
    path.write_bytes(content)
    document["sha256"] = hashlib.sha256(content).hexdigest()
    document["tensors"] = {
        key: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for key, value in tensors.items()
    }
    return f"{how} {name!r:.60}"


def make_hostile(folder: Path, file: str, draw: random.Random) -> str:
    """Change a document, or the tensors that it is about; return in words how.

    Args:
        folder: what holds the pair.
        file: name of its document.
        draw: where the choices come from.
    """
    path, done = folder / file, []
    document = json.loads(path.read_text())
    has_hash = HASH in document
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # for writing; whoever reads has the limit
    try:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            if draw.random() < 0.15:
                tensors = path.with_name(file.replace("config.json", "model.safetensors"))
                done.append(_change_tensors(document, tensors, draw))
                continue
            part = document.get(draw.choice(("config", "config", "modules", "base_check", "tensors", "")))
            nodes = _nodes(part if part and isinstance(part, (dict, list)) else document)
            if not nodes:
                break
            holder, key = draw.choice(nodes)
            change = draw.choice(CHANGES)
            change(holder, key, draw)
            done.append(f"{change.__name__} {key!r:.60}")
        path.write_text(json.dumps(hashed(document) if has_hash else document))
    finally:
        sys.set_int_max_str_digits(digits)
    return ", ".join(done)
