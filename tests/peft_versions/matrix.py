"""Run the tests of the PEFT plugin for each pair of versions: `make peft`, in an environment of its own.

python matrix.py           install each pair in turn, run the tests, and fail where an outcome differs from the table
python matrix.py record    the same, and write the table of which docs/peft.md is made
"""

import csv
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = Path(__file__).with_name("versions.csv")
COLUMNS = ("feature", "peft", "transformers", "outcome")
PEFT = ("0.21.2", "0.21.1", "0.21.0", "0.20.0")
TRANSFORMERS = ("5.24.0", "5.23.0", "5.17.0", "4.57.6")
BESIDE = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "trl",
    "typer",
    "rich",
    "matplotlib",
    "pytest",
    "safetensors",
    "numpy",
)
# What a row of the table says, and the tests that prove it: the beginnings of their names.
FEATURES = {
    "`get_peft_model`, targets, names": (
        "test_it_hangs",
        "test_the_base_keeps",
        "test_target_modules_mean",
        "test_all_linear",
        "test_targets_that",
        "test_names_that",
        "test_what_is_not_get_peft_model",
    ),
    "configuration to a file and back": ("test_a_config",),
    "`save_pretrained`, `from_pretrained`, Auto classes": (
        "test_what_is_saved",
        "test_each_adapter_has",
        "test_the_base_model_is",
        "test_files_of_another",
        "test_what_is_gone",
        "test_the_wrappers",
        "test_dtypes",
    ),
    "`disable_adapter`, status": ("test_disable_adapter", "test_a_frozen", "test_the_layers_tell"),
    "add, set, delete, stack, weighted": ("test_several", "test_adding", "test_weighted"),
    "`adapter_names` in forward and `generate`": (
        "test_adapter_names",
        "test_adapters_of_different",
        "test_each_sequence",
        "test_a_mixed",
    ),
    "merge and hot-swap refused, `unload`": ("test_merging", "test_weights_are_exchanged", "test_unload"),
    "Trainer: checkpoints, resume; gradient checkpointing": ("test_the_trainer", "test_gradient"),
    "a base in 4 bits (bitsandbytes)": ("test_a_base_in_four",),
    "TRL `SFTTrainer(peft_config=)`": ("test_sft",),
    "LoRA and prompt tuning beside attached adapters": (
        "test_neither",
        "test_both",
        "test_prompts",
        "test_an_adapter_on",
        "test_lora_on",
        "test_a_trained_copy",
        "test_detaching",
        "test_the_tuner_wants",
        "test_adapters_that_others",
        "test_structure",
        "test_one_peft_model",
        "test_one_more_lora",
        "test_lora_and",
    ),
    "converters, `adapterx convert`": (
        "test_to_peft",
        "test_peft_loads",
        "test_the_base_is_compared",
        "test_what_peft_alone",
        "test_what_cannot",
        "test_tensors_beyond",
        "test_each_library",
        "test_the_command",
        "test_a_llama",
    ),
    "functions of adapterx on the model": ("test_functions",),
}
REFUSED = "refused"
_WORDS = {
    frozenset({"passed"}): "passes",
    frozenset({"passed", "skipped"}): "partly",
    frozenset({"skipped"}): "skipped",
}


def install(peft: str, transformers: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", f"peft=={peft}", f"transformers=={transformers}", *BESIDE]
    subprocess.run(command, check=True)


def is_refused() -> bool:
    """Tell whether importing the plugin is refused in words."""
    program = "import adapterx.integrations.peft"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return "ExtensionError: adapterx.integrations.peft: peft must be at least 0.21, got" in result.stderr


def outcomes() -> dict[str, list[str]]:
    """Run the tests; return by name of the function what became of its cases."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        files = sorted(str(path) for path in (ROOT / "tests" / "integrations").glob("test_peft*.py"))
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "--tb=short"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
        found: dict[str, list[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            words = {child.tag for child in case} & {"failure", "error", "skipped"}
            found.setdefault(case.get("name", "").partition("[")[0], []).append(next(iter(words), "passed"))
    return found


def judged(found: dict[str, list[str]]) -> dict[str, str]:
    """Return the outcome of each feature; a test that belongs to none is a mistake."""
    names = [name for names in FEATURES.values() for name in names]
    if strangers := [test for test in found if not test.startswith((*names, "test_an_old_peft"))]:
        raise SystemExit(f"FEATURES must name every test, it lacks {strangers}")
    result = {}
    for feature, beginnings in FEATURES.items():
        cases = [word for test, words in found.items() if test.startswith(beginnings) for word in words]
        bad = not cases or {"failure", "error"} & {*cases}
        result[feature] = "fails" if bad else _WORDS[frozenset(cases)]
    return result


def main(arguments: list[str]) -> int:
    rows = []
    for peft in PEFT:
        for transformers in TRANSFORMERS:
            print(f"== peft {peft}, transformers {transformers}", flush=True)
            install(peft, transformers)
            found = dict.fromkeys(FEATURES, REFUSED) if is_refused() else judged(outcomes())
            rows += [{"feature": f, "peft": peft, "transformers": transformers, "outcome": o} for f, o in found.items()]
    if arguments == ["record"]:
        with ROWS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return 0
    with ROWS.open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    wrong = [row for row in rows if row not in known]
    for row in wrong:
        print("WRONG", row)
    return min(1, len(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
