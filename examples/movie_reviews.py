"""Movie-review sentiment (MR): real sentences that ship inside the source package of vaderSentiment (MIT).

The sentences are those of Pang and Lee 2005, the ones behind SST-2: 5,152 positive and 5,160 negative, in no
official split. `prepare` downloads the package by name, draws the splits with a fixed seed, and writes CSV files.
"""

import csv
import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LAST_POSITIVE, LAST_NEGATIVE = 5152, 10312  # what follows are additions of the package, not of MR


def download(folder: Path) -> Path:
    """Download the source package into `folder` (2.5 MB) unless it is there, and return its path."""
    found = sorted(folder.glob("vader*.tar.gz"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", str(folder), PACKAGE], check=True)
        found = sorted(folder.glob("vader*.tar.gz"))
    return found[0]


def read_sentences(archive: Path) -> list[tuple[str, str]]:
    """Return every distinct `(text, label)` of MR with label "positive" or "negative", in the order of the file."""
    with tarfile.open(archive) as outer:
        inner_bytes = outer.extractfile(INNER_ARCHIVE).read()
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        lines = inner.extractfile(SENTENCES).read().decode("utf-8", "replace").splitlines()
    labels: dict[str, str] = {}
    for line in lines:
        number, _, text = line.split("\t", 2)
        identifier = int(number)
        if identifier <= LAST_NEGATIVE:
            labels.setdefault(text.strip(), "positive" if identifier <= LAST_POSITIVE else "negative")
    return list(labels.items())


def prepare(folder: Path, *, train: int = 400, dev: int = 1000, test: int = 1000, seed: int = 0) -> dict[str, Path]:
    """Write `train.csv`, `dev.csv` and `test.csv` (columns text, label; disjoint) into `folder` and return their paths.

    The test sentences are drawn first, then the training sentences: they stay the same whatever follows.
    """
    sentences = read_sentences(download(folder))
    random.Random(seed).shuffle(sentences)
    paths, start = {}, 0
    for name, size in (("test", test), ("train", train), ("dev", dev)):
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(sentences[start : start + size])
        start += size
    return paths


if __name__ == "__main__":
    for split, path in prepare(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/movie_reviews")).items():
        print(split, path)
