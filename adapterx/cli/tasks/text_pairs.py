"""Sources and targets of sequence-to-sequence models, as tables hold them."""

from adapterx.cli.data.examples import Examples, checked, find_column, text_value
from adapterx.cli.data.rows import Rows
from adapterx.cli.data.sources import Sources, find_files
from adapterx.cli.data.tables import read_rows
from adapterx.cli.data.texts import other_columns, texts_to_label
from adapterx.cli.data.wanted import Wanted, hold_lines
from adapterx.cli.tasks.columns import require_different
from adapterx.cli.tasks.task import Asked
from adapterx.errors import ConfigError, speaker

ANSWER = ("text", "generated_text")
PAIRS = (  # in the order in which they are looked for
    ("source", "target"),
    ("src", "tgt"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "target"),
    ("input", "output"),
    ("input", "target"),
    ("prompt", "completion"),
    ("question", "answer"),
)


def read_pairs(source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
    """Read a source and a target for each example.

    Raises:
        DataError: a column is missing or cannot be guessed, or a cell is empty or no text.
    """
    rows = _with_parts(read_rows(source, default_split=default_split))
    usual = _usual(rows)
    text = find_column(rows, asked.text_column, asked.recorded[0], "text", [usual[0]] if usual else None)
    label = find_column(rows, asked.label_column, asked.recorded[1], "label", [usual[1]] if usual else None)
    require_different(rows, [text], [label])
    return Examples(checked(rows, text, text_value), checked(rows, label, text_value), text, label)


def sources_to_rewrite(texts: list[str], file: str | None, asked: Asked) -> Wanted:
    """Gather sources; errors as in `texts_to_label`."""
    files = None if file is None else find_files(file)
    if file is None or hold_lines(files):
        return texts_to_label(texts, file, asked.text_column, recorded=None, answer=ANSWER)
    if texts:
        raise ConfigError(f"{speaker()}: give texts, or --file, or - for standard input (exactly one of them)")
    rows = _with_parts(read_rows(file, default_split="test"))
    usual = [pair[0] for pair in PAIRS]
    column = find_column(rows, asked.text_column, asked.recorded[0], "text", usual)
    read = [column] if column in ANSWER else []
    return Wanted(checked(rows, column, text_value), other_columns(rows, read, ANSWER))


def _usual(rows: Rows) -> tuple[str, str] | None:
    lowered = {name.lower() for name in rows.columns}
    return next((pair for pair in PAIRS if lowered.issuperset(pair)), None)


def _with_parts(rows: Rows) -> Rows:
    """Return the table with `translation.en` and so on, where a column holds such parts as `datasets` have them."""
    parts: dict[str, None] = {}
    for value in rows.values:
        for column, cell in list(value.items()):
            if isinstance(cell, dict):
                for name, part in cell.items():
                    value[f"{column}.{name}"] = part
                    parts[f"{column}.{name}"] = None
    return Rows(rows.source, [*rows.columns, *parts], rows.values, rows.places) if parts else rows
