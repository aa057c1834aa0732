"""Write the rows of the census into one file per version of transformers, and the page docs/models.md from those files.

python tests/models/page.py [--work runs/models] [--check]
"""

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS, PAGE = Path(__file__).parent / "rows", ROOT / "docs" / "models.md"
MODES = ("houlsby", "pfeiffer", "parallel")
FIELDS = ("type", *MODES, "modules", "words")
NOT_A_TYPE = "cannot be built"
NO_CLASS = "no model class of its own"
NO_BLOCKS = "no Transformer blocks"
IN_PART = "works where it ran"
MEANING = {
    "works": "the right modules, proven by the oracle; everything said above holds",
    IN_PART: "likewise, but parts of the model could not be run with made-up inputs",
    "right": "the right modules by the oracle; the rest of the proof has not been run",
    "refused": "in words: there are blocks, but their sublayers cannot be told for certain, or cannot be served",
    NO_BLOCKS: "refused: the model has no blocks with attention (convolutional networks and the like)",
    "not run": "adapters are attached, the model could not be run with made-up inputs, so nothing is proven",
    "fails": "right modules, and a part of the proof fails: see the words in the row",
    "in part": "a sublayer without an adapter and without a word",
    "wrong": "adapters on wrong modules",
}


def rows_of(folder):
    """Return the rows of one version, from what the census has left in a folder."""
    rows = [_row(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    return [row for row in rows if row is not None]


def _row(name, found):
    if found["status"] != "built":
        return {"type": name, **dict.fromkeys(MODES, NOT_A_TYPE), "modules": "", "words": _short(_reason(found))}
    row = {"type": name, **{mode: _verdict(found, found[mode]) for mode in MODES}}
    words = next((found[mode]["words"] for mode in MODES if row[mode] not in ("works", IN_PART)), "")
    return row | {"modules": " ".join(found["houlsby"].get("modules", ())), "words": _short(words)}


def _reason(found):
    if found["status"] == "no model":
        return NO_CLASS
    why = found.get("why", found["status"])
    return "it wants files from the hub" if "couldn't connect" in why else why


def _verdict(found, mode):
    verdict = mode["verdict"]
    if verdict == "refused":
        blocks = found["blocks"] or mode.get("late") or "cannot be adapted" in mode["words"]
        return "refused" if blocks else NO_BLOCKS
    return {"works, seen in part": IN_PART, "failed": "fails"}.get(verdict, verdict)


def _short(words):
    return " ".join(words.replace("|", "/").split())[:160]


def write_rows(work):
    """Write a file of rows for each version that was measured."""
    ROWS.mkdir(exist_ok=True)
    for folder in sorted(work.iterdir()):
        with (ROWS / f"transformers-{folder.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows_of(folder))


def read_rows():
    """Return version to rows."""
    found = {}
    for path in sorted(ROWS.glob("*.csv"), reverse=True):
        with path.open(newline="") as file:
            found[path.stem.removeprefix("transformers-")] = list(csv.DictReader(file))
    return found


def page(versions):
    """Return the text of docs/models.md."""
    lines = [_INTRODUCTION]
    lines += ["| | " + " | ".join(f"{version}, {mode}" for version in versions for mode in MODES) + " |"]
    lines += ["|---" * (1 + len(versions) * len(MODES)) + "|"]
    counts = [Counter(row[mode] for row in rows) for rows in versions.values() for mode in MODES]
    for verdict, meaning in MEANING.items():
        lines.append(f"| **{verdict}**: {meaning} | " + " | ".join(str(count[verdict]) for count in counts) + " |")
    for version, rows in versions.items():
        built = [row for row in rows if row["houlsby"] != NOT_A_TYPE]
        lines += ["", f"## transformers {version}", ""]
        parts = sum(row["words"] == NO_CLASS for row in rows)
        lines += [
            f"{len(built)} types and sub-configurations. {parts} more have no model class of their own (parts, "
            f"settings); {len(rows) - len(built) - parts} cannot be built here, most for want of optional packages.",
            "",
        ]
        lines += ["| type | Houlsby | Pfeiffer | parallel | modules |", "|---|---|---|---|---|"]
        for row in built:
            modules = f"`{row['modules']}`" if row["modules"] else row["words"]
            lines.append(f"| {row['type']} | " + " | ".join(row[mode] for mode in MODES) + f" | {modules} |")
    return "\n".join(lines) + "\n"


_INTRODUCTION = """# Models

Written by `make models`, which builds a tiny random model of every model type and sub-configuration of transformers
that can be built without weights and optional packages, and attaches adapters as `attach` does by default (Houlsby),
with `positions=("feed_forward",)` (Pfeiffer) and with `placement="parallel"`. transformers 4.57 has security holes
that only 5.x closes; its rows are here because many still run it.

An oracle that knows nothing of the rule judges where the adapters hang: it runs the model and walks the autograd
graph from each block's output back to its input; what is added to the residual stream there must have an adapter, or
a word in the report (`Attachment.notes`), and nothing else may have one. Parallel adapters must read what their
sublayer reads. **works** means besides: new adapters leave the output as it is bit for bit, gradients reach nothing
else and every adapter (save where the model itself lets none through, as the quantizer of a codec), a step of training
changes the output, saved and loaded adapters give the same output, and `detach` restores the model.

A star in the module names stands for any index.
"""


def main():
    """Write rows and page, or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.work is not None:
        write_rows(options.work)
    text = page(read_rows())
    if options.check:
        sys.exit(0 if PAGE.read_text() == text else "docs/models.md differs from the rows; run tests/models/page.py")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
