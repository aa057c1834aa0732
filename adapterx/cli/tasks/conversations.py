"""What language models learn from, as tables hold it: plain texts, conversations, prompts with their answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterx.chat import ANSWERS, Message
from adapterx.cli.data.encodings import decode
from adapterx.cli.data.examples import Examples, checked, find_column, require_encodable, shown_value, text_value
from adapterx.cli.data.rows import Rows
from adapterx.cli.data.sources import Sources, find_files, kind_of, read_bytes
from adapterx.cli.data.tables import listed, read_rows
from adapterx.cli.data.texts import other_columns, texts_to_label
from adapterx.cli.data.wanted import Wanted, hold_lines
from adapterx.cli.tasks.columns import BETWEEN, as_list
from adapterx.cli.tasks.task import Asked
from adapterx.errors import ConfigError, DataError, speaker

ANSWER = ("text", "generated_text")
CONVERSATIONS = ("messages", "conversations", "conversation", "chat")
SYSTEM = ("system", "system_prompt")
# Columns of prompts and of answers; a second column of a prompt may be empty or missing.
PAIRS = (
    (("prompt",), "completion"),
    (("prompt",), "response"),
    (("instruction", "input"), "output"),
    (("instruction", "context"), "response"),
    (("instruction",), "response"),
    (("question",), "answer"),
    (("query",), "response"),
    (("input",), "output"),
)
ROLES = {"human": "user", "user": "user", "gpt": ANSWERS, "assistant": ANSWERS, "chatgpt": ANSWERS, "model": ANSWERS}
ROLES |= {"bot": ANSWERS, "system": "system", "tool": "tool", "developer": "developer"}
PARAGRAPHS = "paragraphs"  # the column that plain text is said to come from


def read_texts_or_conversations(source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
    """Read plain texts (as `str`), or conversations (as lists of messages) that hold an answer each.

    Raises:
        DataError: a column is missing or cannot be guessed, or a cell is empty or of a wrong kind.
    """
    if (files := _plain_files(source)) is not None:
        return Examples([text for path in files for text in _paragraphs(path)], [], PARAGRAPHS, None)
    rows = read_rows(source, default_split=default_split)
    prompt, answer = _columns(rows, asked)
    if answer is not None:
        return Examples(_pairs(rows, prompt, answer), [], BETWEEN.join(prompt), answer)
    if any(as_list(row.get(prompt[0])) is not None for row in rows.values):
        found = checked(rows, prompt[0], _messages)
        for messages, place in zip(found, rows.places, strict=True):
            if not any(each["role"] == ANSWERS for each in messages):
                raise DataError(f"{speaker()}: {rows.source}: {place} must hold an answer, a turn of {ANSWERS!r}")
        return Examples(found, [], prompt[0], None)
    return Examples(checked(rows, prompt[0], text_value), [], prompt[0], None)


def prompts_to_answer(texts: list[str], file: str | None, asked: Asked, *, conversations: bool) -> Wanted:
    """Gather prompts: conversations that end before an answer, or texts to go on with.

    Raises:
        ConfigError: there is no text, or more than one source.
        DataError: the source cannot be used.
    """

    def as_prompt(text: str) -> str | list[Message]:
        return [{"role": "user", "content": text}] if conversations else text

    files = None if file is None else find_files(file)
    if file is None or hold_lines(files):
        plain = texts_to_label(texts, file, asked.text_column, recorded=None, answer=ANSWER)
        return Wanted([as_prompt(text) for text in plain.texts], plain.columns)
    if texts:
        raise ConfigError(f"{speaker()}: give texts, or --file, or - for standard input (exactly one of them)")
    rows = read_rows(file, default_split="test")
    prompt, answer = _columns(rows, asked, answers=False)
    if len(prompt) > 1 or answer is not None:
        found: list[Any] = [_asked(row) for row in _pairs(rows, prompt, None)]
        if not conversations:
            found = [messages[-1]["content"] for messages in found]
    elif any(as_list(row.get(prompt[0])) is not None for row in rows.values):
        found = [_asked(messages) for messages in checked(rows, prompt[0], _messages)]
        if not conversations:
            raise DataError(f"{speaker()}: {rows.source}: column {prompt[0]!r} must hold texts, as in the training")
    else:
        found = [as_prompt(text) for text in checked(rows, prompt[0], text_value)]
    read = [column for column in prompt if column in ANSWER]
    return Wanted(found, other_columns(rows, read, ANSWER))


def _plain_files(source: str | Sources) -> list[Path] | None:
    found: list[Path] = []
    for each in (source,) if isinstance(source, str) else source:
        files = find_files(each) if kind_of(Path(each)) == ".txt" else None
        if files is None or not all(kind_of(path) == ".txt" for path in files):
            return None
        found += files
    return found


def _paragraphs(path: Path) -> list[str]:
    text = decode(read_bytes(path), str(path)).replace("\r\n", "\n").replace("\r", "\n")
    found = [part.strip("\n") for part in _blank_lines_split(text)]
    for part in found:
        require_encodable(part, str(path))
    return found


def _blank_lines_split(text: str) -> list[str]:
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return ["\n".join(lines) for lines in parts if lines]


def _columns(rows: Rows, asked: Asked, *, answers: bool = True) -> tuple[list[str], str | None]:
    """Return the columns of the prompt, or of the whole, and that of the answers if they stand apart."""
    text, label = asked.text_column, asked.label_column
    if text is None and label is None and asked.recorded[0] not in (None, PARAGRAPHS):
        text, label = asked.recorded
        label = label if answers else None
    if text is not None or label is not None:
        if text is None:
            raise ConfigError(f"{speaker()}: --label-column needs --text-column, the column of the prompts")
        names = [text] if text in rows.columns else [name.strip() for name in text.split(BETWEEN)]
        found = [find_column(rows, name, None, "text") for name in names if name in rows.columns or name == names[0]]
        return found, None if label is None else find_column(rows, label, None, "label")
    lowered = {name.lower(): name for name in reversed(rows.columns)}
    if whole := next((lowered[name] for name in CONVERSATIONS if name in lowered), None):
        return [whole], None
    for prompt, answer in PAIRS:
        if prompt[0] in lowered and (answer in lowered or not answers):
            return [lowered[name] for name in prompt if name in lowered], lowered.get(answer) if answers else None
    return [find_column(rows, None, None, "text")], None


def _pairs(rows: Rows, prompt: list[str], answer: str | None) -> list[list[Message]]:
    """Return conversations of one question each, and its answer if there is a column of answers."""
    if answer in prompt:
        raise DataError(f"{speaker()}: {rows.source}: prompt and answer must differ, both are {answer!r}")
    first = checked(rows, prompt[0], _messages_or_text("user"))
    last = [[] for _ in first] if answer is None else checked(rows, answer, _messages_or_text(ANSWERS))
    found = []
    for row, place, question, reply in zip(rows.values, rows.places, first, last, strict=True):
        where = f"{rows.source}: {place}"
        for column in prompt[1:]:
            more = text_value(row.get(column), f"{where}: column {column!r}")
            question = (
                question if more is None else [{**question[-1], "content": f"{question[-1]['content']}\n\n{more}"}]
            )
        system = next((name for name in SYSTEM if name in row), None)
        told = text_value(row.get(system), f"{where}: column {system!r}") if system else None
        found.append(([{"role": "system", "content": told}] if told else []) + question + reply)
    return found


def _messages_or_text(role: str) -> Callable[[object, str], Any]:
    def read(value: object, where: str) -> list[Message] | None:
        if as_list(value) is not None:
            return _messages(value, where)
        text = text_value(value, where)
        return None if text is None else [{"role": role, "content": text}]

    return read


def _messages(value: object, where: str) -> list[Message] | None:
    """Return the turns of a cell: `role` and `content`, or `from` and `value` as ShareGPT has them."""
    found = as_list(value)
    if not found:
        if value is None or found == []:
            return None
        raise DataError(f"{speaker()}: {where} must hold a list of messages, got {shown_value(value)}")
    return [_message(each, where) for each in found]


def _message(value: object, where: str) -> Message:
    fields = value if isinstance(value, dict) else {}
    role, content = (fields.get(names[0], fields.get(names[1])) for names in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{speaker()}: {where} must hold messages with the texts role and content (or from and value), got "
            f"{shown_value(value)}"
        )
    if more := [name for name in ("tool_calls", "function_call") if fields.get(name)]:
        raise DataError(f"{speaker()}: {where} must hold messages of text alone, got one with {listed(more)}")
    if role.lower() not in ROLES:
        raise DataError(f"{speaker()}: {where} must name roles out of {listed(ROLES)}, got {role!r}")
    require_encodable(content, where)
    return {"role": ROLES[role.lower()], "content": content}


def _asked(messages: list[Message]) -> list[Message]:
    """Return a conversation without the answers at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == ANSWERS:
        end -= 1
    if not end:
        raise DataError(f"{speaker()}: a conversation must hold a turn to answer, it holds answers only")
    return messages[:end]
