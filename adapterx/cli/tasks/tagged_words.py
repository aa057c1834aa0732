"""Words and tags as tables and CoNLL files hold them."""

from collections.abc import Callable
from typing import Any

from adapterx.cli.data.examples import Examples, checked, find_column, require_encodable, shown_value, text_value
from adapterx.cli.data.labels import NoClass, label_text
from adapterx.cli.data.sources import Sources, find_files
from adapterx.cli.data.tables import read_rows
from adapterx.cli.data.texts import other_columns, texts_to_label
from adapterx.cli.data.wanted import Wanted, hold_lines
from adapterx.cli.tasks.columns import as_list, require_different
from adapterx.cli.tasks.conll import conll_files, read_conll
from adapterx.cli.tasks.task import Asked
from adapterx.cli.tasks.words import Words
from adapterx.errors import ConfigError, DataError, speaker

ANSWER = ("text", "words", "tags", "entities")
WORD_COLUMNS = ("tokens", "words", "token", "word", "text", "sentence")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos", "pos", "chunk_tags", "label", "tag")


def read_tagged_words(source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
    """Read texts as lists of words, and as many tags for each.

    Raises:
        DataError: a column is missing or cannot be guessed, a cell is empty or of a wrong kind, or a text has other
            words than tags.
    """
    files = conll_files(source)
    rows = read_rows(source, default_split=default_split) if files is None else read_conll(source, files)
    # Of CoNLL files the first field is the word and the last one the tag.
    usual = (WORD_COLUMNS, TAG_COLUMNS) if files is None else ((rows.columns[0],), (rows.columns[-1],))
    words = find_column(rows, asked.text_column, asked.recorded[0], "text", usual[0])
    tags = find_column(rows, asked.label_column, asked.recorded[1], "label", usual[1])
    require_different(rows, [words], [tags])
    texts, labels = checked(rows, words, _list_of(_word)), checked(rows, tags, _list_of(_tag))
    for text, tags_of_text, place in zip(texts, labels, rows.places, strict=True):
        if len(text) != len(tags_of_text):
            raise DataError(
                f"{speaker()}: {rows.source}: {place} must have a tag for each word, got {len(text)} words and "
                f"{len(tags_of_text)} tags"
            )
    return Examples(texts, labels, words, tags)


def words_to_tag(texts: list[str], file: str | None, asked: Asked) -> Wanted:
    """Gather what is to be tagged: plain texts, lists of words in a table, or a CoNLL file.

    Raises:
        ConfigError: there is no text, or more than one source.
        DataError: the source cannot be used.
    """
    files = None if file is None else find_files(file)
    if file is None or hold_lines(files):
        plain = texts_to_label(texts, file, asked.text_column, recorded=None, answer=ANSWER)
        return Wanted([Words.of_text(text) for text in plain.texts], plain.columns)
    if texts:
        raise ConfigError(f"{speaker()}: give texts, or --file, or - for standard input (exactly one of them)")
    files = conll_files(file)
    rows = read_rows(file, default_split="test") if files is None else read_conll(file, files)
    usual = WORD_COLUMNS if files is None else (rows.columns[0],)
    column = find_column(rows, asked.text_column, asked.recorded[0], "text", usual)
    found = checked(rows, column, _words_or_text)
    return Wanted(found, other_columns(rows, [column] if column in ("text", "words") else [], ANSWER))


def _list_of(convert: Callable[[object, str], str | None]) -> Callable[[object, str], Any]:
    """Return what reads a cell: a list, or a text with spaces between."""

    def read(value: object, where: str) -> list[str] | None:
        found = as_list(value)
        if found is None and (text := text_value(value, where)) is not None:
            found = text.split()
        return [convert(each, where) for each in found] if found else None

    return read


def _words_or_text(value: object, where: str) -> Words | None:
    found = as_list(value)
    if found:
        return Words.of_list([_word(each, where) for each in found])
    text = text_value(value, where)
    return None if text is None else Words.of_text(text)


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{speaker()}: {where} must hold words, got {shown_value(value)}")
    require_encodable(value, where)
    return value


def _tag(value: object, where: str) -> str:
    try:
        text = label_text(value)
    except NoClass as error:
        raise DataError(f"{speaker()}: {where} must hold tags, got {shown_value(value)} ({error})") from None
    if text is None:
        raise DataError(f"{speaker()}: {where} must hold a tag for each word, got {shown_value(value)}")
    require_encodable(text, where)
    return text
