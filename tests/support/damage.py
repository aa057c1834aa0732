"""Damage to the files of a folder, as disks, copies cut short and strangers with an editor do it."""

import os
import shutil


def _changed(change):
    def damage(path, draw, others):
        content = bytearray(path.read_bytes())
        change(content, draw)
        path.write_bytes(content)

    return damage


def _flip(content, draw):
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _byte(content, draw):
    content[draw.randrange(len(content))] = draw.choice((0, 0x20, 0x22, 0x30, 0x31, 0x39, 0x65, 0x7B, 0xFF))


def _cut(content, draw):
    del content[draw.randrange(len(content)) :]


def _grow(content, draw):
    position = draw.randrange(len(content) + 1)
    content[position:position] = draw.randbytes(draw.choice((1, 7, 4096)))


def _zero(content, draw):
    start = draw.randrange(len(content))
    length = min(draw.choice((1, 16, 512)), len(content) - start)
    content[start : start + length] = bytes(length)


def _repeat(content, draw):
    start = draw.randrange(len(content))
    content[start:start] = content[start : start + draw.choice((1, 16, 512))]


def _noise(content, draw):
    content[:] = draw.randbytes(draw.choice((0, 1, 8, 1000)))


def _nest(content, draw):
    content[:] = draw.choice((b"[", b'{"a":')) * draw.choice((50, 500, 200_000))


def _from_another(path, draw, others):
    shutil.copy(draw.choice(others) / path.name, path)


def _swap(path, draw, others):
    other = draw.choice([each for each in path.parent.iterdir() if each != path] or [path])
    between = path.with_name("between")
    path.rename(between)
    if other != path:
        other.rename(path)
    between.rename(other)


def _remove(path, draw, others):
    path.unlink()


def _other_kind(path, draw, others):
    path.unlink()
    draw.choice((os.mkfifo, os.mkdir, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero")))(path)


DAMAGES = {
    "bits": _changed(_flip),
    "byte": _changed(_byte),
    "truncated": _changed(_cut),
    "inserted": _changed(_grow),
    "zeroed": _changed(_zero),
    "repeated": _changed(_repeat),
    "noise": _changed(_noise),
    "nested": _changed(_nest),
    "of another": _from_another,
    "swapped": _swap,
    "removed": _remove,
    "no file": _other_kind,
}


def damage(folder, others, draw):
    """Damage one file, or two, of a folder by `draw`, a `random.Random`; return in words how.

    Args:
        folder: files, no subfolders.
        others: folders with files of the same names.
        draw: where the choices come from.
    """
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        if files := sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size):
            name, path = draw.choice(sorted(DAMAGES)), draw.choice(files)
            DAMAGES[name](path, draw, others)
            done.append(f"{name}: {path.name}")
    return ", ".join(done)
