"""The harness measures what it says, and the README's tables are those of the rows in git."""

import itertools
import subprocess
import sys
from pathlib import Path

import harness
import movie_reviews
import pytest
import tables
import torch

ROOT = Path(__file__).parents[2]


class FakeClock:
    """A clock that only moves when a fake implementation says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def test_time_in_turns_reports_milliseconds_per_call():
    clock = FakeClock()
    functions = {"fast": lambda: clock.work(0.002), "slow": lambda: clock.work(0.006)}
    samples = harness.time_in_turns(functions, repeats=4, sample=harness.host_sampler(clock))
    assert {name: len(times) for name, times in samples.items()} == {"fast": 4, "slow": 4}
    assert samples["fast"] == pytest.approx([2.0] * 4)
    assert samples["slow"] == pytest.approx([6.0] * 4)


def test_time_in_turns_interleaves_and_reverses_every_second_round():
    clock, order = FakeClock(), []

    def implementation(name):
        def run():
            order.append(name)
            clock.work(0.01)

        return run

    harness.time_in_turns({n: implementation(n) for n in "ab"}, repeats=3, sample=harness.host_sampler(clock))
    assert "".join(order[4:]) == "ab" + "ba" + "ab"  # the first four calls warm up


def test_ratios_are_formed_round_by_round():
    case = harness.Case("forward", 3, 8, 2, torch.float32)
    # The machine was twice as slow in the second round: the ratio does not see it, a ratio of medians would not either,
    # but in the third round only the peer was slow.
    samples = {"adapterx": [1.0, 2.0, 1.0], "eager": [2.0, 4.0, 3.0]}
    rows = harness.rows_of("bench", case, samples, subject="adapterx", flop=6e6)
    by_key = {(row["implementation"], row["metric"]): row for row in rows}
    assert by_key["eager", "time / adapterx"]["median"] == 2.0
    assert by_key["eager", "time / adapterx"]["p80"] == 3.0
    assert by_key["adapterx", "throughput"]["median"] == pytest.approx(6.0)
    assert ("adapterx", "time / adapterx") not in by_key
    assert set(itertools.chain.from_iterable(rows)) == set(harness.COLUMNS)


def test_append_rows_writes_the_header_once(tmp_path):
    row = dict.fromkeys(harness.COLUMNS, 1.23456789)
    for _ in range(2):
        harness.append_rows(tmp_path / "new" / "rows.csv", [row])
    lines = (tmp_path / "new" / "rows.csv").read_text().splitlines()
    assert lines == [",".join(harness.COLUMNS), *[",".join(["1.2346"] * len(harness.COLUMNS))] * 2]


def test_tables_of_the_pages_are_what_their_sources_give():
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_movie_review_splits_are_disjoint_and_stay_the_same(tmp_path, monkeypatch):
    sentences = [(f"sentence {number}", "positive" if number % 2 else "negative") for number in range(60)]
    monkeypatch.setattr(movie_reviews, "download", lambda folder: folder)
    monkeypatch.setattr(movie_reviews, "read_sentences", lambda archive: list(sentences))
    sizes = {"train": 20, "dev": 10, "test": 15}
    texts = {}
    for name, path in movie_reviews.prepare(tmp_path, **sizes).items():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "text,label"
        texts[name] = set(lines[1:])
        assert len(texts[name]) == sizes[name]
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]
    assert not texts["dev"] & texts["test"]
    again = movie_reviews.prepare(tmp_path, **{**sizes, "dev": 25})
    for name in ("test", "train"):
        assert set(again[name].read_text(encoding="utf-8").splitlines()[1:]) == texts[name]


def test_a_page_without_the_place_of_a_table_is_refused():
    page = "before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n"
    assert tables.with_tables(page, {"one": lambda: "new"}) == page.replace("old", "new")
    with pytest.raises(ValueError, match="one place for the table two, got 0"):
        tables.with_tables(page, {"two": lambda: "new"})
