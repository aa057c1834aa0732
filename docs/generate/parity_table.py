"""The table of docs/adapterhub.md: what was compared with AdapterHub's `adapters`, by case and model."""

import csv
from pathlib import Path

ROWS = Path(__file__).resolve().parents[2] / "tests" / "adapterhub" / "parity.csv"
_CELLS = {"refused": "refused", "adapters fails": "fails", "differs on purpose": "other"}


def read() -> list[dict[str, str]]:
    """Return the rows that `make adapterhub` compares with."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """Return the summary and the table, a row for each case and a column for each model."""
    rows = read()
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = {(row["case"], row["model"]): row for row in rows}
    lines = [_summary(rows), "", f"| case | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = [_cell(found.get((case, model))) for model in models]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    return _CELLS.get(row["outcome"], row["difference"].replace("e-0", "e-").replace("0.0e+00", "0"))


def _summary(rows: list[dict[str, str]]) -> str:
    equal = [row for row in rows if row["outcome"] == "equal"]
    written = [float(row["written"]) for row in rows if row["written"]]
    count = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in _CELLS}
    largest = max(float(row["difference"]) for row in equal)
    return (
        f"{len(rows)} cases: {len(equal)} give the same outputs here, the largest difference being {largest:.1e}; "
        f"{count['refused']} are refused by the name of an option; {count['adapters fails']} end in an error in "
        f"`adapters` itself; {count['differs on purpose']} are averages, which it divides once more. Of the equal ones "
        f"{len(written)} were written by adapterx and loaded by `adapters`, the largest difference being "
        f"{max(written):.1e}."
    )
