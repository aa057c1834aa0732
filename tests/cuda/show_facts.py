"""Show what a stage on a GPU has found out: the facts that matter, as text.

python tests/cuda/show_facts.py runs/gpu-first/facts.jsonl
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from facts import read_facts

WORDS = 160  # characters of a reason that are shown


def of_kind(facts: Sequence[dict], kind: str) -> list[dict]:
    """Return the facts of a kind."""
    return [fact for fact in facts if fact["fact"] == kind]


def machine_lines(facts: Sequence[dict]) -> Iterator[str]:
    """Yield what the machine is and reaches, and which library ran."""
    for fact in of_kind(facts, "machine"):
        yield f"{fact.get('gpu')}, torch {fact.get('torch')}"
    for fact in of_kind(facts, "ceiling"):
        yield f"{fact['of']}: {fact['best']} {fact.get('unit', '')} at best, {fact.get('median')} in the median"
    for fact in of_kind(facts, "library"):
        yield f"library: {fact.get('path')}, {fact.get('plan_table')}"


def check_lines(facts: Sequence[dict]) -> Iterator[str]:
    """Yield which instructions are wrong, and how many cases of each path are right, with the first wrong ones."""
    groups = of_kind(facts, "instructions")
    wrong = [str(fact.get("primitive")) for fact in groups if fact.get("ok") is False]
    if groups:
        right = len(groups) - len(wrong)
        yield f"instructions: {right} of {len(groups)} groups right; wrong: {', '.join(wrong) or 'none'}"
    checks = of_kind(facts, "check")
    for path in dict.fromkeys(fact["path"] for fact in checks):
        own = [fact for fact in checks if fact["path"] == path]
        counts = Counter({True: "right", False: "WRONG"}.get(fact["ok"], "refused") for fact in own)
        yield f"{path:10} " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        for fact in [fact for fact in own if fact["ok"] is False][:3]:
            why = fact.get("words") or f"wrong {fact['wrong']}, other bits {fact['other_bits']}"
            yield f"    {fact['form']} {fact['dtype']} {fact['shape']}: {why}"[:WORDS]


def time_lines(facts: Sequence[dict]) -> Iterator[str]:
    """Yield the times of each case, in microseconds, the fastest first, with what is far from the formula."""
    for fact in of_kind(facts, "time"):
        case = f"{fact['mode']} {'x'.join(map(str, fact['shape']))} {fact['picked']}".strip()
        times = sorted(fact["us"].items(), key=lambda item: item[1])
        yield f"{case}: " + ", ".join(f"{name} {us:.1f}" for name, us in times)
        far = [name for name, value in fact.get("difference", {}).items() if not _small(value)]
        troubles = [*(f"{name} is FAR from the formula" for name in far), *fact.get("failed", {}).items()]
        yield from (f"    {trouble}"[:WORDS] for trouble in troubles)
    for fact in of_kind(facts, "left out"):
        yield f"left out since {fact['mode']} {fact['shape']}: {fact['path'] or 'the case'}"


def _small(value: object) -> bool:
    return isinstance(value, (int, float)) and value < 0.02


def step_lines(facts: Sequence[dict]) -> Iterator[str]:
    """Yield kernels, numbers of tests, what sanitizers say, and the steps that did not pass."""
    for fact in of_kind(facts, "kernel"):
        counters = [f"{name} {fact[name]}" for name in fact if name not in ("fact", "at_s", "path", "kernel")]
        yield f"ncu {fact['path']}: {fact['kernel'][:60]}: {', '.join(counters)}"
    for fact in of_kind(facts, "tests"):
        yield f"tests: {fact['passed']} passed, {fact['failed']} failed, {fact['skipped']} skipped"
    for fact in [fact for fact in of_kind(facts, "test") if fact["outcome"] == "failed"][:10]:
        yield f"    {fact['name']}: {fact['words'][-WORDS:]!r}"
    for fact in of_kind(facts, "sanitizer"):
        yield f"{fact['tool']}: {fact['status']}, {fact['reports']} reports"
    for fact in of_kind(facts, "step"):
        if fact["status"] != "passed":
            yield f"{fact['name']}: {fact['status'].upper()} {fact['words'][:WORDS]}"
    for fact in of_kind(facts, "end"):
        yield f"{fact['stage']}: {'passed' if fact['passed'] else 'NOT passed'} in {fact['seconds']} s"


def text_of(facts: Sequence[dict]) -> str:
    """Return all of it."""
    return "\n".join(line for part in (machine_lines, check_lines, time_lines, step_lines) for line in part(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path)
    print(text_of(read_facts(parser.parse_args().facts)))


if __name__ == "__main__":
    main()
