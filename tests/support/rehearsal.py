"""A stage on a GPU, started with fake steps and looked at: for the tests of both stages and their long campaign."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cuda"))
from facts import read_facts  # noqa: E402

HEADER = (
    '"ID","Kernel Name","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum"'
)
# Both run the program behind their own options.
PROGRAM = 'while [ "${1#--}" != "$1" ] || [ ! -x "$1" ]; do shift; done\n"$@" || exit\n'
NCU = f"""#!/bin/sh
{PROGRAM}
echo '{HEADER}'
echo '"","","byte","%","ns"'
echo '"0","bottleneck_tile_kernel","268000000","81.2","77300"'
"""
SANITIZER = f"""#!/bin/sh
[ "$1" = --help ] && echo "  --kernel-name arg" && exit
tool=$2
{PROGRAM}
[ $tool = racecheck ] && echo "========= RACECHECK SUMMARY: 3 hazards displayed (0 errors, 3 warnings)"
echo "========= ERROR SUMMARY: 0 errors"
"""
SELF_TEST = """#!/bin/sh
echo '{"primitive": "ldmatrix_x4", "ok": true}'
"""
NVCC = f"""#!/bin/sh
while [ "$1" != -o ]; do [ $# = 0 ] && echo "Build fake" && exit; shift; done
cat > "$2" <<'END' && chmod +x "$2"
{SELF_TEST}END
"""


class Rehearsal:
    """Stages in a folder, all of them with the results folder `results`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.place = folder, folder / "results", folder / "results" / "facts.jsonl"
        self.tools, carried = folder / "tools", folder / "ptx_self_test"
        self.tools.mkdir()
        programs = {"ncu": NCU, "compute-sanitizer": SANITIZER, "nvcc": NVCC}
        for place, text in (*((self.tools / name, text) for name, text in programs.items()), (carried, SELF_TEST)):
            place.write_text(text)
            place.chmod(0o755)

    def start(
        self,
        stage: str,
        plan: dict[str, str] | None = None,
        *options: str,
        library: bool = True,
        tools: bool = True,
        speed: float = 1,
    ) -> subprocess.Popen:
        """Start a stage in which `plan` is planted."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ADAPTERX_", "CUDA_"))}
        path = ":".join([str(self.tools)] * tools + ["/usr/bin", "/bin"])
        environment = {**kept, "FAKE_PLAN": json.dumps(plan or {}), "FAKE_SPEED": str(speed), "FAKE": str(self.folder)}
        environment |= {"PATH": path, "ADAPTERX_COMMIT": "abc1234"}
        environment |= {"ADAPTERX_LIBRARY": str(self.folder / "carried.so")} if library else {}
        program = str(ROOT / "tests" / "support" / "rehearse_stage.py")
        command = [sys.executable, "-S", program, stage, "--results", str(self.results), *options]
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)

    def run(self, *arguments: object, **options: object) -> tuple[int, dict[str, dict], dict]:
        """Run a stage to its end; return exit status, the facts of its steps by name, and the last fact."""
        code = self.start(*arguments, **options).wait(timeout=120)
        self.check_files()
        last = read_facts(self.place)[-1]
        assert last["fact"] == "end"
        return code, {fact["name"]: fact for fact in self.facts("step")}, last

    def facts(self, kind: str | None = None) -> list[dict]:
        """Return the facts of a kind, or all."""
        return read_facts(self.place, kind)

    def check_files(self) -> None:
        """Few files, in one folder, and every fact is whole."""
        names = sorted(path.name for path in self.results.rglob("*"))
        assert len(names) <= 8, names
        assert {"facts.jsonl", "log.txt"} <= set(names)
        lines = self.place.read_text().split("\n")
        assert lines.pop() == ""
        assert all(json.loads(line)["fact"] for line in lines)

    def kill(self, process: subprocess.Popen, number: int, lines: int, *, ended: bool = False) -> int:
        """Send a signal once so many facts are written; nothing of the stage may run on, and no fact be lost.

        `ended`: it may have come to its end before.
        """
        while process.poll() is None and self.count_lines() < lines:
            time.sleep(0.002)
        begin, before = time.monotonic(), self.count_lines()
        process.send_signal(number)
        code = process.wait(timeout=60)
        while self.running() and time.monotonic() < begin + 20:
            time.sleep(0.01)
        assert self.running() == []
        if self.place.exists():
            self.check_files()
        facts = self.facts()
        assert len(facts) >= before >= lines
        assert lines == 0 or facts[0]["fact"] == "begin"
        if number == signal.SIGTERM and not ended:
            assert [fact["fact"] for fact in facts if fact["fact"] in ("interrupted", "end")] == ["interrupted", "end"]
        return code

    def count_lines(self) -> int:
        """Return how many facts are written."""
        return self.place.read_bytes().count(b"\n") if self.place.exists() else 0

    def running(self) -> list[int]:
        """Return the processes of the stages that still run."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"FAKE={self.folder}\0".encode() in (place / "environ").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue
        return found
