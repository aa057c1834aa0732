"""Words, the pieces that a tokenizer makes of them, and where both stand in the text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterx.errors import CheckpointError, DataError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A word begins and ends with a letter or a digit and holds no space; what else there is stands alone.
_WORD = re.compile(r"\w(?:\S*\w)?|[^\w\s]")


@dataclass(frozen=True)
class Words:
    """The words of a text.

    Attributes:
        text: the text.
        spans: for each word, where it begins and where it ends in the text.
    """

    text: str
    spans: list[tuple[int, int]]

    @classmethod
    def of_text(cls, text: str) -> "Words":
        """Part a text into words; marks at either end of a word are words of their own."""
        return cls(text, [match.span() for match in _WORD.finditer(text)])

    @classmethod
    def of_list(cls, words: Sequence[str]) -> "Words":
        """Join words by spaces."""
        spans, start = [], 0
        for word in words:
            spans.append((start, start + len(word)))
            start += len(word) + 1
        return cls(" ".join(words), spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, place: int) -> str:
        start, end = self.spans[place]
        return self.text[start:end]


def encode_words(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Words], max_length: int, *, embedded: int | None = None
) -> list[tuple[dict[str, Any], list[int | None]]]:
    """Tokenize texts and find the first piece of every word.

    Args:
        tokenizer: a fast one, which tells where its pieces stand.
        texts: what to read.
        max_length: tokens read of each text.
        embedded: of how many tokens the base model has embeddings; None: it does not tell.

    Returns:
        For each text the row of the model's inputs, and for each of its words the position of its first piece; None
        for words beyond `max_length`, those of which the tokenizer makes nothing, and those that share their only piece
        with the word before.

    Raises:
        CheckpointError: the tokenizer is none of the fast ones.
        DataError: a text has no tokens, or one for which the model has no embedding.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{speaker()}: the tokenizer must tell where its pieces stand, as the fast ones of the library tokenizers "
            f"do; {type(tokenizer).__name__} does not"
        )
    encoded = tokenizer(
        [each.text for each in texts], truncation=True, max_length=max_length, return_offsets_mapping=True
    )
    offsets = encoded.pop("offset_mapping")
    rows = []
    for i, words in enumerate(texts):
        row = {name: column[i] for name, column in encoded.items()}
        if not row["input_ids"] or not len(words):
            raise DataError(f"{speaker()}: a text must have words and tokens, got {words.text[:80]!r}")
        if embedded is not None and max(row["input_ids"]) >= embedded:
            token = tokenizer.convert_ids_to_tokens(max(row["input_ids"]))
            raise DataError(
                f"{speaker()}: a text must not hold the token {token!r}, for which the model has no embedding: "
                f"{words.text[:80]!r}"
            )
        rows.append((row, _first_pieces(words, offsets[i])))
    return rows


def _first_pieces(words: Words, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return for each word the first piece that has a character of it and is of no word before.

    The space before a word belongs to it: some tokenizers begin its first piece there, or make it a piece.
    """
    begins = [0, *(end for _, end in words.spans)]
    first: list[int | None] = [None] * len(words)
    word = 0
    for place, (start, end) in enumerate(offsets):
        while word < len(words) and words.spans[word][1] <= start:
            word += 1
        reached = word
        while reached < len(words) and first[reached] is not None:  # it has begun
            reached += 1
        if start < end and reached < len(words) and begins[reached] < end:
            first[reached] = place
    return first
