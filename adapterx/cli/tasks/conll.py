"""Files of tagged words as CoNLL and its kin write them: a word and its tags in a line, a blank line between texts."""

from pathlib import Path

from adapterx.cli.data.encodings import decode, split_lines
from adapterx.cli.data.rows import Rows
from adapterx.cli.data.sources import Sources, find_files, kind_of, read_bytes
from adapterx.errors import DataError, speaker

SUFFIXES = (".conll", ".conll03", ".conll2003", ".bio", ".iob", ".iob2", ".bioes", ".txt")
DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document and belongs to no text


def conll_files(source: str | Sources) -> list[Path] | None:
    """Return the files if all that is named are such, by their suffixes."""
    found: list[Path] = []
    for each in (source,) if isinstance(source, str) else source:
        files = find_files(each) if kind_of(Path(each.partition("@")[0])) in SUFFIXES else None
        if files is None or not all(kind_of(path) in SUFFIXES for path in files):
            return None
        found += files
    return found


def read_conll(source: str | Sources, files: list[Path]) -> Rows:
    """Read tagged words; the columns are called `1`, `2` and so on, and hold a list for each text.

    Fields are separated by tabs where a line has one, else by spaces. Lines that begin with `#` and have no other
    field, or a space behind it and another number of fields than the file's, are comments.

    Raises:
        DataError: a file is not text or holds no word, or its lines differ in the number of fields.
    """
    places, texts, width = [], [], 0
    for path in files:
        text: list[list[str]] = []
        for number, line in enumerate([*split_lines(decode(read_bytes(path), str(path))), ""], 1):
            fields = [field.strip() for field in line.rstrip().split("\t")] if "\t" in line.rstrip() else line.split()
            comment = line.startswith("#") and len(fields) != width
            if not fields or fields[0] in ("", DOCUMENT):
                if text:
                    texts.append(text)
                text = []
            elif not comment:
                width = width or len(fields)
                if len(fields) != width:
                    raise DataError(
                        f"{speaker()}: {path}: line {number} must have {width} fields, as the lines before, got "
                        f"{len(fields)}: {line[:80]!r}"
                    )
                if not text:
                    places.append(f"line {number}" if len(files) == 1 else f"{path} line {number}")
                text.append(fields)
    if not texts:
        raise DataError(f"{speaker()}: {source} holds no words")
    columns = [str(i) for i in range(1, width + 1)]
    values = [dict(zip(columns, map(list, zip(*text, strict=True)), strict=True)) for text in texts]
    return Rows(str(source), columns, values, places)
