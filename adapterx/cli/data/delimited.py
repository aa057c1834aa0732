"""Read CSV and TSV as the programs of this world write them: quoted or not, separated by what the header shows.

A field may stand in quotes, which are doubled inside it (RFC 4180, pandas, Excel). TSV is also written without any
quoting (GLUE, pandas with `quoting=3`), where a quote is a character like others and a line is a row. Nothing in a file
says which of the two it is, so a TSV file is read as quoted only if it is whole that way, loses no line, and its quotes
have a use.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from adapterx.cli.data.encodings import split_lines
from adapterx.errors import DataError, speaker

DELIMITERS = ",;\t|"
DECLARED = re.compile(r'sep=(\t|[^\w\s"])\r?\n')  # Excel's first line in countries where a comma is part of a number
Records = Iterator[tuple[int, list[str]]]  # each with the line in which it begins
QUOTED = re.compile(r'"(?:[^"]|"")*"')
WHOLE = "only the whole file could tell: write it as .jsonl, or leave out --streaming"


@dataclass(frozen=True)
class Table:
    """Header and records, with the line in which each record begins; blank lines are none."""

    columns: list[str]
    records: list[list[str]]
    lines: list[int]


class Malformed(Exception):
    """A text cannot be read in one way; another may serve."""


def read_delimited(source: str, text: str, usual: str) -> Table:
    """Read a table whose fields are separated by `usual`, or by another character that its header shows.

    Raises:
        DataError: rows have other numbers of fields than the header, or quotes are never closed.
    """
    if declared := DECLARED.match(text):
        text, usual = "\n" + text[declared.end() :], declared[1]
    try:
        table = _read(text, _delimiter(text, usual))
    except Malformed as error:
        raise DataError(f"{speaker()}: {source}: {error}") from None
    return Table([name.strip() for name in table.columns], table.records, table.lines)


def _delimiter(text: str, usual: str) -> str:
    """Return the usual delimiter, unless the header has but one field by it and more by another."""
    header = (re.search(r"\S[^\r\n]*", text) or [""])[0]
    header = re.sub(QUOTED, "", header)  # what stands in quotes separates nothing
    if usual in header:
        return usual
    shown = [other for other in DELIMITERS if other in header]
    for other in shown:
        with suppress(Malformed):
            _read(text, other)
            return other
    # What begins like a table and is none is best told by the delimiters that no name of a column holds.
    return next((other for other in shown if other in ";\t"), usual)


def _read(text: str, delimiter: str) -> Table:
    if delimiter != "\t":
        return _read_quoted(text, delimiter)
    if '"' not in text:
        return _read_unquoted(text, delimiter)
    try:
        unquoted = _read_unquoted(text, delimiter)
    except Malformed:
        if _quotes_are_whole(text, delimiter):
            return _read_quoted(text, delimiter)
        raise
    if not _quotes_are_whole(text, delimiter):
        return unquoted
    try:
        quoted = _read_quoted(text, delimiter)
    except Malformed:
        return unquoted
    if quoted.lines == unquoted.lines:
        return quoted if _quotes_have_a_use(unquoted) else unquoted
    # That it is a table of one column says nothing, every text is one; doubled quotes speak for a writer that quotes.
    if len(unquoted.columns) == 1 or '""' in text:
        line = min(set(unquoted.lines) - set(quoted.lines))
        raise Malformed(f"line {line} may be a row or the end of a quoted one; write the table as .csv or .jsonl")
    return unquoted


def _quotes_are_whole(text: str, delimiter: str) -> bool:
    """Return whether every quote encloses a whole field or is doubled inside one, as a writer that quotes leaves it."""
    edge = re.escape(delimiter)
    field = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{edge}\r\n]*)(?:{edge}|\r\n|\r|\n|\Z)')
    end = 0
    while end < len(text):  # not `finditer`, which would look for the next field behind one that is none
        found = field.match(text, end)
        if found is None:
            return False
        end = found.end()
    return True


def _quotes_have_a_use(table: Table) -> bool:
    """Return whether the quotes around whole fields look like a writer's, who has his reasons, and not like the text's.

    He doubles the quotes inside, quotes the header or whole columns, or (Excel) what holds a comma.
    """
    fields = [field for row in (table.columns, *table.records) for field in row]
    enclosed = [field for field in fields if field[:1] == '"']
    if any('""' in field for field in enclosed) or all(name[:1] == '"' for name in table.columns):
        return True
    if any(all(field[:1] == '"' for field in column) for column in zip(*table.records, strict=True)):
        return True
    return all(("," in field) == (field[:1] == '"') for field in fields)


def _read_quoted(text: str, delimiter: str) -> Table:
    if not re.search(rf'{re.escape(delimiter)} +"', text):
        return _parse(text, delimiter)
    with suppress(Malformed):  # `good, "p"`: people put a space there, which would make the quotes part of the field
        table = _parse(text, delimiter)
        if not any(field.lstrip(" ")[:1] == '"' for row in (table.columns, *table.records) for field in row):
            return table
    with suppress(Malformed):
        return _parse(text, delimiter, skip_spaces=True)
    return _parse(text, delimiter)


def _parse(text: str, delimiter: str, *, skip_spaces: bool = False) -> Table:
    # strict: a quote that is never closed would otherwise swallow the rest of the file without a word.
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=skip_spaces)
    return _table(_records(reader), delimiter)


def _records(reader: Any) -> Records:
    csv.field_size_limit(2**31 - 1)  # documents are longer than csv's 128 KiB
    start = 1
    try:
        for record in reader:
            yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise Malformed(f"the row that begins in line {start} is malformed: {error}") from None


def _read_unquoted(text: str, delimiter: str) -> Table:
    records = ((i, line.split(delimiter) if line else []) for i, line in enumerate(split_lines(text), 1))
    return _table(records, delimiter)


def _table(found: Records, delimiter: str) -> Table:
    rows = list(_rectangular(found, delimiter))
    columns = rows[0][1] if rows else []
    return Table(columns, [record for _, record in rows[1:]], [line for line, _ in rows[1:]])


def _rectangular(found: Records, delimiter: str) -> Records:
    """Yield the header and the records, with their lines."""
    columns: list[str] = []
    blank = []
    for line, record in found:
        if not record:
            blank.append(line)
        elif not columns:
            columns, blank = record, []
            yield line, columns
        elif len(record) != len(columns):
            by = "" if delimiter == "," else f" separated by {delimiter!r}"
            raise Malformed(f"line {line} has {len(record)} fields{by}, the header has {len(columns)}")
        elif len(columns) > 1 and record == columns:
            raise Malformed(f"line {line} repeats the header; give files that were joined by a pattern such as '*.csv'")
        else:
            if len(columns) == 1:  # in a table of one column a blank line is a row without a value
                yield from ((each, [""]) for each in blank)
            blank = []
            yield line, record


def stream_delimited(source: str, lines: Iterator[str], usual: str) -> tuple[list[str], Records]:
    """Read a table row by row; `lines` keep their ends.

    Returns:
        The names of the columns, and the records with the lines in which they begin.

    Raises:
        DataError: as `read_delimited`, now or later; or only the whole file tells what its quotes mean.
    """
    begin = []
    for line in lines:
        begin.append(line)
        if len(begin) == 1 and (declared := DECLARED.fullmatch(line)):
            begin, usual = ["\n"], declared[1]
        elif line.strip():
            break
    header = re.sub(QUOTED, "", (re.search(r"\S[^\r\n]*", "".join(begin)) or [""])[0])
    shown = [usual] if usual in header else [other for other in DELIMITERS if other in header]
    delimiter = shown[0] if shown else usual
    found = (_unquoted if delimiter == "\t" else _quoted)(itertools.chain(begin, lines), delimiter)
    rows = _refusing(source, _rectangular(found, delimiter))
    _, columns = next(rows, (0, []))
    return [name.strip() for name in columns], rows


def _refusing(source: str, rows: Records) -> Records:
    try:
        yield from rows
    except Malformed as error:
        raise DataError(f"{speaker()}: {source}: {error}") from None


def _unquoted(lines: Iterator[str], delimiter: str) -> Records:
    for i, line in enumerate(lines, 1):
        if '"' in line:
            raise Malformed(f"line {i} has a quote, which may enclose fields or be text; {WHOLE}")
        content = line.rstrip("\r\n")
        yield i, content.split(delimiter) if content else []


def _quoted(lines: Iterator[str], delimiter: str) -> Records:
    spaced = re.compile(rf'{re.escape(delimiter)} +"')
    seen = [False, False]  # a space before a quote, a field that begins with one

    def watched() -> Iterator[str]:
        for line in lines:
            seen[0] = seen[0] or spaced.search(line) is not None
            yield line

    for line, record in _records(csv.reader(watched(), delimiter=delimiter, strict=True)):
        seen[1] = seen[1] or any(field.lstrip(" ")[:1] == '"' for field in record)
        if all(seen):
            raise Malformed(
                f"up to line {line} spaces stand before quotes, which may enclose fields or be text; {WHOLE}"
            )
        yield line, record
