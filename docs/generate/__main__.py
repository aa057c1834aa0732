"""Write everything in docs/ (and one stub) that follows from the code: `make docs`; `--check` only compares."""

import sys
from pathlib import Path

import api_pages
import floors
import operator_stub
import option_table
import parity_table
import versions_table

ROOT = Path(__file__).resolve().parents[2]


def generated() -> dict[Path, str]:
    """Return every generated file, by its path, with the text that it should hold."""
    return {
        **api_pages.pages(),
        ROOT / "docs" / "README.md": filled("docs/README.md", "api", api_pages.index()),
        ROOT / "docs" / "architecture.md": filled("docs/architecture.md", "floors", floors.drawing()),
        ROOT / "docs" / "adapterhub.md": filled("docs/adapterhub.md", "parity", parity_table.table()),
        ROOT / "docs" / "command-line.md": filled("docs/command-line.md", "options", option_table.tables()),
        ROOT / "docs" / "peft.md": filled("docs/peft.md", "versions", versions_table.table()),
        operator_stub.STUB: operator_stub.stub(),
    }


def filled(path: str, mark: str, text: str) -> str:
    """Return a file with the text between two marks replaced.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    before, found, rest = (ROOT / path).read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"filled: {path} must hold {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def stale() -> list[Path]:
    """Return the files that do not hold what they should, pages of rooms that are gone among them."""
    wanted = generated()
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return changed + sorted(set((ROOT / "docs" / "api").glob("*.md")) - set(wanted))


def main(arguments: list[str]) -> int:
    """Write what is stale, or with `--check` only say what is."""
    wanted = generated()
    for path in (old := stale()):
        print(path.relative_to(ROOT))
        if arguments == ["--check"]:
            continue
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return 1 if old and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
