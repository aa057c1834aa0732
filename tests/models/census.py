"""Attach adapters to a tiny model of every type that transformers knows, and judge where they hang.

    python tests/models/census.py [--types bert llama] [--part 0/2]

Each type runs in a process of its own, with a limit of time. A row that stands in the results is not computed again.
"""

import argparse
import json
import os
import signal
import time
import warnings
from pathlib import Path

import torch
import transformers
from evidence import collect
from tiny_types import all_types, build
from verdict import MODES, judge, prove, without_indices

from adapterx.errors import TargetError

SECONDS = 60
ATTEMPTS = 3


class TimeIsUp(Exception):
    """A model took too long."""


def measure(name, config_class):
    """Return the row of one model type, as JSON holds it."""
    best = None
    for attempt in range(ATTEMPTS):
        try:
            model, attempt = build(name, config_class, start=attempt)
        except LookupError:
            return {"status": "no model"}
        except Exception as error:
            return best or {"status": "not built", "why": str(error)[:300]}
        row = _measured(model)
        row["attempt"] = attempt
        if best is None or row["ran"] > best["ran"]:
            best = row
        if not row["unrun"] or row["houlsby"]["verdict"] == "works":
            break
    return best


def _measured(model):
    facts, runnable = collect(model)
    row = {"status": "built", "ran": len(facts["ran"]), "unrun": [words for _, words in facts["errors"]][:2]}
    row["blocks"] = any(sub["attends"] or sub["kind"] == "attention" for sub in facts["subs"])
    for mode in MODES:
        row[mode] = _mode(model, facts, runnable, mode)
    return row


def _mode(model, facts, runnable, mode):
    try:
        report, failed = prove(model, facts, runnable, mode)
    except TargetError as error:
        return {"verdict": "refused", "words": str(error)}
    except RuntimeError as error:
        verdict = "refused" if "a parallel adapter must read" in str(error) else "failed"
        return {"verdict": verdict, "words": str(error)[:300], "late": True}
    problems = judge(facts, report, report.config.positions)
    kinds = [kind for kind, _ in problems]
    verdict = "wrong" if "wrong" in kinds else "in part" if "part" in kinds else "failed" if failed else "works"
    if verdict == "works" and "unseen" in kinds:
        verdict = "works, seen in part" if len(set(kinds)) < len(report.targets) and runnable else "not run"
    return {
        "verdict": verdict,
        "targets": len(report.targets),
        "unseen": kinds.count("unseen"),
        "said": kinds.count("said"),
        "modules": sorted({without_indices(target.module) for target in report.targets}),
        "words": "; ".join([*failed, *(words for kind, words in problems if kind in ("wrong", "part"))])[:300],
    }


def _guarded(name, config_class):
    def alarm(*_):
        raise TimeIsUp

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        return measure(name, config_class)
    except TimeIsUp:
        return {"status": "too slow"}
    except Exception as error:
        return {"status": "failed", "why": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        signal.alarm(0)


def _in_a_process(name, config_class, path):
    started, child = time.time(), os.fork()
    if child == 0:
        path.write_text(json.dumps(_guarded(name, config_class)))
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.time() - started > SECONDS + 30:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    if not path.exists():
        path.write_text(json.dumps({"status": "killed"}))


def main():
    """Measure what is asked for and not known yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--work", type=Path, default=Path("runs/models"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = options.work / transformers.__version__
    folder.mkdir(parents=True, exist_ok=True)
    types = all_types()
    part, parts = map(int, options.part.split("/"))
    chosen = options.types or [name for number, name in enumerate(types) if number % parts == part]
    for name in chosen:
        path = folder / f"{name}.json"
        if options.types or not path.exists():
            path.unlink(missing_ok=True)
            _in_a_process(name, types[name], path)
            if options.types:
                print(name, path.read_text())


if __name__ == "__main__":
    main()
