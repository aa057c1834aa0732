"""Conversations as a tokenizer's chat template writes them, and which tokens of them are answers."""

__all__ = ["PLAIN_TEMPLATE", "Chat"]

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterx.errors import DataError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # role and content

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ANSWERS = "assistant"  # the role whose turns are learnt
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The template for tokenizers without one of their own: `### User:`, `### Assistant:` and so on, answers end in the end
token. A run keeps the one that it was trained with."""


class Chat:
    """A tokenizer with a chat template, which tells the tokens that a model is to learn: the answers.

    Args:
        tokenizer: of the model.
        template: the template to use; None takes the tokenizer's own.

    Raises:
        DataError: the tokenizer is none that tells where its tokens stand, or has no token that ends an answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"{speaker()}: conversations need a fast tokenizer, which tells where its tokens stand; "
                f"{type(tokenizer).__name__} is none"
            )
        if template is not None and tokenizer.eos_token is None:
            raise DataError(f"{speaker()}: the tokenizer must have an end token, which ends an answer, it has none")
        self.tokenizer, self.template = tokenizer, template

    def write(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Return a conversation as text.

        Args:
            messages: its turns.
            ask: whether the beginning of an answer follows.

        Raises:
            DataError: the template refuses it, such as two turns of the same role.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=ask, chat_template=self.template
            )
        except Exception as error:  # of jinja's kinds: whatever a template raises
            reason = " ".join(str(error).split()) or type(error).__name__
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"{speaker()}: a conversation must be one that the chat template takes, it refuses turns of {roles}: "
                f"{reason}"
            ) from error

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the token ids of a conversation, and for each whether it belongs to an answer.

        An answer is what the model has to say after `write(..., ask=True)`: the text of its turn and the token that
        ends it. Where a template marks this by `{% generation %}`, the marks hold.

        Args:
            messages: its turns, each with `role` and `content`; the roles are `"user"`, `"assistant"`, `"system"` and
                what else the template knows.

        Raises:
            DataError: which tokens are the answers cannot be told.
        """
        if MARK.search(str(self.template or self.tokenizer.chat_template)):
            return self._marked(messages)
        text = self.write(messages)
        spans = [self._span(messages, i, text) for i, each in enumerate(messages) if each["role"] == ANSWERS]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        answers = [False] * len(ids)
        for start, end in spans:
            for i, (first, last) in enumerate(offsets):
                if first < last and first < end and last > start:
                    if first < start:
                        raise DataError(
                            f"{speaker()}: an answer must begin with a token of its own, the tokenizer joins its "
                            f"first characters with what is before: {text[first:last]!r}"
                        )
                    answers[i] = True
            self._without_trailing_space(ids, answers)
        return ids, answers

    def end_of_answer(self) -> int | None:
        """Return the special token that ends an answer; None if the template writes none."""
        ids, answers = self.encode([{"role": "user", "content": "a"}, {"role": ANSWERS, "content": "b"}])
        last = [token for token, answer in zip(ids, answers, strict=True) if answer][-1]
        return last if last in self.tokenizer.all_special_ids else None

    def _marked(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        self.write(messages)  # what it refuses is told in words
        encoded: Any = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            chat_template=self.template,
        )
        return list(encoded["input_ids"]), [bool(mask) for mask in encoded["assistant_masks"]]

    def _span(self, messages: Sequence[Message], turn: int, text: str) -> tuple[int, int]:
        """Return where an answer begins and ends in the text of the whole conversation."""
        before, with_answer = self.write(messages[:turn], ask=True), self.write(messages[: turn + 1])
        if not (with_answer.startswith(before) and text.startswith(with_answer)):
            raise DataError(
                f"{speaker()}: turn {turn + 1} of a conversation cannot be told from the rest, for the chat template "
                "writes it otherwise when others follow or none; end the conversations with their first answer, or use "
                "a tokenizer whose template marks answers by {% generation %}"
            )
        return len(before), len(with_answer)

    def _without_trailing_space(self, ids: list[int], answers: list[bool]) -> None:
        """Leave out the space behind the token that ends an answer: nobody asks the model for it."""
        places = [i for i, answer in enumerate(answers) if answer]
        special = set(self.tokenizer.all_special_ids)
        while places and ids[places[-1]] not in special and not self.tokenizer.decode([ids[places[-1]]]).strip():
            places.pop()
        if places and ids[places[-1]] in special:
            for i in range(places[-1] + 1, len(answers)):
                answers[i] = False
