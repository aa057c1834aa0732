"""Compare every case of the goldens with adapterx, and let it write them for `adapters`: runs beside adapterx only.

python check.py write FOLDER     compare, and write what was read below FOLDER, for `make_goldens.py load FOLDER`
python check.py record FOLDER    put what both found into `parity.csv`, from which docs/adapterhub.md is made
python check.py verify FOLDER    fail where that differs from `parity.csv`: another outcome, or above the tolerance
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from hub_goldens import FOLDER, TOLERANCE, Golden, cases

import adapterx
from adapterx.errors import AdapterxError
from adapterx.integrations import adapterhub

ROWS = FOLDER / "parity.csv"
COLUMNS = ("model", "case", "kind", "preset", "outcome", "difference", "written", "words")
EQUAL, REFUSED, THEIRS, OTHER = "equal", "refused", "adapters fails", "differs on purpose"


class Failure(Exception):
    """An output that should be equal is not."""


def run_case(golden: Golden, case: str, target: Path) -> tuple[float | None, list[dict]]:
    """Return the largest difference of a case, and what was written of it below `target`, an entry for each format."""
    record = golden.cases[case]
    model = golden.base(record.get("class"))
    if record["kind"] == "head":
        return run_head(golden, case, model, target)
    if record["kind"] == "composition":
        return run_composition(golden, case, model, target)
    adapterhub.load_adapter(model, golden.path(case))
    difference = golden.difference(model, case)
    if record["kind"] == "language_model":
        return difference, []  # loaded there as that of the base model
    adapterhub.save_adapter(model, target / "a")
    return difference, entries(golden, case, target, {"a": target / "a"}, class_name=record.get("class"))


def run_head(golden: Golden, case: str, model: torch.nn.Module, target: Path) -> tuple[float | None, list[dict]]:
    adapterhub.load_adapter(model, golden.path(case))
    head = adapterhub.load_head(golden.path(case), model).eval()
    with torch.no_grad():
        logits = head(model(**golden.inputs)[0], golden.inputs["attention_mask"])
    adapterhub.save_adapter(model, target / "a")
    adapterhub.save_head(head, target / "a", "a", golden.model_type)
    class_name = json.loads((target / "a" / "head_config.json").read_text())["model_class"]
    written = entries(golden, case, target, {"a": target / "a"}, class_name=class_name, head=True)
    return float((logits - golden.outputs[case]).abs().max()), written


def run_composition(golden: Golden, case: str, model: torch.nn.Module, target: Path) -> tuple[float | None, list[dict]]:
    kind, names, options = golden.cases[case]["how"]
    places, fusion = {name: target / name for name in names}, None
    for name in names:
        adapterhub.load_adapter(model, golden.path(case) / name, active=False)
    if kind == "Fuse":
        adapterhub.load_fusion(model, golden.path(case) / "fusion")
        fusion = target / "fusion"
        adapterhub.save_fusion(model, fusion)
    elif kind == "Average":
        return None, []  # `adapters` divides by the number of parts once more; tested by itself
    else:
        if kind == "Split" and golden.model_type == "vit":
            options["splits"] = [2, 3]
        adapterx.set_active(model, getattr(adapterx.compose, kind)(*names, **options))
    difference = golden.difference(model, case)
    for name, place in places.items():
        adapterhub.save_adapter(model, place, name)
    return difference, entries(golden, case, target, places, how=(kind, names, options), fusion=fusion)


def entries(golden, case, target, places, *, class_name=None, head=False, how=None, fusion=None) -> list[dict]:
    """Return what `adapters` shall load and compare: from the pickles and, where there are, from the others."""
    output = target / "output.safetensors"
    save_file({"output": golden.outputs[case]}, output)
    root = target.parents[1]
    entry = {
        "model": golden.model_type, "case": case, "class": class_name, "head": head, "how": how,
        "adapters": {name: str(place.relative_to(root)) for name, place in places.items()},
        "fusion": str(fusion.relative_to(root)) if fusion else None, "output": str(output.relative_to(root)),
    }  # fmt: skip
    safe = all((place / "adapter.safetensors").exists() for place in places.values())
    return [{**entry, "format": form} for form in (["bin", "safetensors"] if safe else ["bin"])]


def compare_model(model_type: str, folder: Path) -> tuple[list[dict], list[dict]]:
    """Return the rows of a model, and the entries of what was written below `folder`."""
    rows, written = [], []
    with tempfile.TemporaryDirectory() as temporary:
        golden = Golden(model_type, temporary)
        for case, record in golden.cases.items():
            row = {"model": model_type, "case": case, "kind": record["kind"], "preset": record["preset"]}
            if "error" in record:
                rows.append(row | {"outcome": THEIRS, "words": record["error"].replace(temporary, "")})
                continue
            try:
                difference, found = run_case(golden, case, folder / model_type / record["folder"])
            except AdapterxError as error:
                words = str(error).replace(temporary, "").replace(f"/{record['folder']}", "")
                rows.append(row | {"outcome": REFUSED, "words": words})
                continue
            written += found
            rows.append(
                row | ({"outcome": OTHER} if difference is None else {"outcome": EQUAL, "difference": difference})
            )
            if difference is not None and not difference <= TOLERANCE:
                raise Failure(f"{model_type}, {case}: {difference:.1e}")
    return rows, written


def write(folder: Path) -> int:
    """Compare everything, and leave rows and entries below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [compare_model(model_type, folder) for model_type in cases.MODELS]
    rows = [row for part, _ in found for row in part]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "index.json").write_text(json.dumps([entry for _, part in found for entry in part]))
    for outcome in (EQUAL, REFUSED, THEIRS, OTHER):
        print(f"{outcome}: {sum(row['outcome'] == outcome for row in rows)} of {len(rows)}")
    return 0


def gathered(folder: Path) -> list[dict]:
    """Return the rows with what `adapters` found when it loaded what was written."""
    largest: dict[tuple[str, str], float] = {}
    for entry in json.loads((folder / "loaded.json").read_text()):
        key = (entry["model"], entry["case"])
        largest[key] = max(largest.get(key, 0.0), entry["difference"])
    rows = json.loads((folder / "rows.json").read_text())
    return [row | {"written": largest.get((row["model"], row["case"]))} for row in rows]


def shown(row: dict) -> dict:
    """Return a row as it stands in the file."""
    numbers = {key: f"{row[key]:.1e}" for key in ("difference", "written") if row.get(key) is not None}
    return {column: "" for column in COLUMNS} | row | {"difference": "", "written": ""} | numbers


def record(folder: Path) -> int:
    """Write `parity.csv`."""
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(shown, gathered(folder)))
    return 0


def verify(folder: Path) -> int:
    """Compare with `parity.csv`; return how many cases have another outcome or too large a difference."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        known = {(row["model"], row["case"]): row["outcome"] for row in csv.DictReader(file)}
    rows = gathered(folder)
    wrong = [row for row in rows if known.pop((row["model"], row["case"]), None) != row["outcome"]]
    wrong += [row for row in rows if max(row.get("difference") or 0.0, row["written"] or 0.0) > TOLERANCE]
    for row in wrong:
        print("WRONG", row)
    for missing in known:
        print("MISSING", *missing)
    return len(wrong) + len(known)


if __name__ == "__main__":
    sys.exit(min(1, {"write": write, "record": record, "verify": verify}[sys.argv[1]](Path(sys.argv[2]))))
