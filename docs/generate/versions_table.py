"""The table of docs/peft.md: which versions of PEFT and transformers the plugin was tested with, and what for."""

import csv
from pathlib import Path

ROWS = Path(__file__).resolve().parents[2] / "tests" / "peft_versions" / "versions.csv"


def table() -> str:
    """Return the table, a row for each version of PEFT and a column for each of transformers, and what was tested."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(dict.fromkeys(row["transformers"] for row in rows))
    lines = [
        f"| peft | {' | '.join(f'transformers {version}' for version in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for peft in dict.fromkeys(row["peft"] for row in rows):
        pairs = [[row for row in rows if (row["peft"], row["transformers"]) == (peft, each)] for each in columns]
        lines.append(f"| {peft} | {' | '.join(map(_cell, pairs))} |")
    features = dict.fromkeys(row["feature"] for row in rows)
    return "\n".join([*lines, "", f"Each pair has {len(features)} parts: {'; '.join(features)}."])


def _cell(rows: list[dict[str, str]]) -> str:
    """Return the outcome of a pair of versions: one word where all parts have one, else the parts that do not pass."""
    if len({row["outcome"] for row in rows}) == 1:
        return rows[0]["outcome"]
    return "passes; " + "; ".join(f"{row['outcome']}: {row['feature']}" for row in rows if row["outcome"] != "passes")
