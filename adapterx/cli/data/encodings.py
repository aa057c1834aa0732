"""From bytes to text, in the encodings that programs write, and from text to lines."""

import codecs
import re
from contextlib import suppress

from adapterx.errors import DataError, speaker

FOREIGN = {  # what else a file of a known name may turn out to be, by its first bytes
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array; write a table",
    b"SQLite format 3": "a database; write the table as CSV",
}


def require_text(start: bytes, name: str) -> None:
    """Refuse what begins like a known kind of file that is no text.

    Raises:
        DataError: it does.
    """
    foreign = next((told for magic, told in FOREIGN.items() if start.startswith(magic)), None)
    if foreign is not None:
        raise DataError(f"{speaker()}: {name} is not text but {foreign}")


def decode(raw: bytes, name: str) -> str:
    """Return the text that bytes hold: UTF-8, or UTF-16 or UTF-32 that can be told by its mark or its NUL bytes.

    Raises:
        DataError: it is in no such encoding (the text names the line and the byte), not text, or empty.
    """
    require_text(raw, name)
    encoding, skipped = encoding_of(raw)
    try:
        text = raw[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        byte = skipped + error.start
        line = raw.count(b"\n", 0, byte) + 1
        raise DataError(
            f"{speaker()}: {name} is not {encoding.upper()}: line {line}, byte {byte} of the file is 0x{raw[byte]:02x}"
            f"; {_advice(raw, byte, error)}"
        ) from None
    if "\ufeff" in text:  # the mark of a file that was joined to another
        text = re.sub(r"(?<![^\r\n])\ufeff", "", text)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{speaker()}: {name} is not text: line {line} holds a NUL byte")
    if not text.strip():
        raise DataError(f"{speaker()}: {name} is empty")
    return text


def encoding_of(raw: bytes) -> tuple[str, int]:
    """Return the encoding, as far as the first 4096 bytes show it, and the length of the byte order mark."""
    marks = (  # UTF-32's begins with UTF-16's
        ("utf-8", codecs.BOM_UTF8),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
    )
    for encoding, mark in marks:
        if raw.startswith(mark):
            return encoding, len(mark)
    start = raw[:4096]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) * 10 > len(start) and not min(even, odd):  # ASCII in UTF-16: every other byte is NUL
        return ("utf-16-le" if odd else "utf-16-be"), 0
    return "utf-8", 0


def _advice(raw: bytes, byte: int, error: UnicodeDecodeError) -> str:
    if error.reason in ("unexpected end of data", "truncated data"):
        return "the file ends in the middle of a character: it may be cut off"
    if error.encoding != "utf-8":
        return "the file is damaged"
    if not raw[:byte].isascii():
        return "what stands before is UTF-8, so mend or delete this line"
    with suppress(UnicodeDecodeError):
        raw.decode("cp1252")
        return "if western Windows wrote it, convert it with `iconv -f cp1252 -t utf-8`, else from its own encoding"
    return "convert it with `iconv -f ENCODING -t utf-8` from the encoding that it is in"


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text. Only `\n`, `\r\n` and `\r` end one, not U+2028 and what else `splitlines` takes."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
