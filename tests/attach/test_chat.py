"""Which tokens of a conversation are learnt, token by token, and when that cannot be told."""

import pytest

pytest.importorskip("transformers")

from tiny_language import CHATML, MARKED, tokenizer_with

from adapterx.chat import PLAIN_TEMPLATE, Chat
from adapterx.errors import DataError

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what does the cat say?"},
    {"role": "assistant", "content": "the cat says meow."},
    {"role": "user", "content": "the dog?"},
    {"role": "assistant", "content": " woof \n"},
]


def learnt(chat, messages):
    """Return the texts of the parts that are learnt."""
    ids, answers = chat.encode(messages)
    parts, before = [], False
    for token, answer in zip(ids, answers, strict=True):
        if answer and not before:
            parts.append([])
        if answer:
            parts[-1].append(token)
        before = answer
    return [chat.tokenizer.decode(part) for part in parts]


def test_every_token_of_chatml():
    """By hand: what stands between the head of an assistant's turn and the token that ends it, that one included."""
    tokenizer = tokenizer_with(CHATML)
    ids, answers = Chat(tokenizer, None).encode(TALK)
    assert ids == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    expected, role, head = [], None, False
    for token in tokens:
        if token == "<|im_start|>":
            role, head = "", True
            expected.append(False)
        elif head:
            role += token
            head = not token.endswith("Ċ")
            expected.append(False)
        else:
            expected.append(role == "assistantĊ")
            if token == "<|im_end|>":
                role = None
    assert answers == expected
    assert learnt(Chat(tokenizer, None), TALK) == ["the cat says meow.<|im_end|>", " woof \n<|im_end|>"]


FAMILIES = {  # how well-known models write turns, in short
    "llama 3": (
        "{{ bos }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{% for m in messages %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
        "{{ m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    "a system prompt of its own": "{% if messages and messages[0]['role'] != 'system' %}{{ 'be kind\n' }}{% endif %}"
    + CHATML,
}
ENDS = {"mistral": "</s>"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_before_an_answer_is_what_generation_begins_with(family):
    """Token by token: the ids before each answer are those of the prompt that `write(..., ask=True)` gives."""
    chat = Chat(tokenizer_with(FAMILIES[family]), None)
    talk = [message for message in TALK if message["role"] != "system"]
    ids, answers = chat.encode(talk)
    begins = [i for i, answer in enumerate(answers) if answer and not answers[i - 1]]
    assert len(begins) == 2
    for begin, turn in zip(begins, (1, 3), strict=True):
        prompt = chat.tokenizer(chat.write(talk[:turn], ask=True), add_special_tokens=False)["input_ids"]
        assert ids[:begin] == prompt
    end = ENDS.get(family, "<|im_end|>")
    first, second = learnt(chat, talk)
    assert first.strip() == f"the cat says meow.{end}"
    assert "".join(second.split()) == f"woof{end}"
    assert chat.end_of_answer() == chat.tokenizer.convert_tokens_to_ids(end)


def test_marks_of_a_template_hold_and_agree():
    plain, marked = Chat(tokenizer_with(CHATML), None), Chat(tokenizer_with(MARKED), None)
    assert marked.encode(TALK) == plain.encode(TALK)
    assert plain.end_of_answer() == marked.end_of_answer() == plain.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_template_given_by_the_run():
    chat = Chat(tokenizer_with(), PLAIN_TEMPLATE)
    assert chat.write(TALK[1:4], ask=True) == (
        "### User:\nwhat does the cat say?\n\n### Assistant:\nthe cat says meow.</s>\n\n### User:\nthe dog?\n\n"
        "### Assistant:\n"
    )
    assert learnt(chat, TALK) == ["the cat says meow.</s>", " woof \n</s>"]
    assert chat.end_of_answer() == chat.tokenizer.eos_token_id


def test_a_template_without_an_end_keeps_what_ends_the_turn():
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    chat = Chat(tokenizer_with(), template)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "the cat"}]
    with pytest.raises(DataError, match=r"must begin with a token of its own, the tokenizer joins .*' the'"):
        chat.encode(talk)  # " the" is one token of byte-level tokenizers
    chat = Chat(tokenizer_with(), template.replace("': '", "':\n'").replace("assistant: ", "assistant:\n"))
    assert learnt(chat, talk) == ["the cat\n"]
    assert chat.end_of_answer() is None


def test_an_answer_that_is_written_otherwise_later_is_refused():
    """As templates do that drop the reasoning of earlier turns."""
    template = CHATML.replace("message['content'] +", "(message['content'] if loop.last else '...') +")
    chat = Chat(tokenizer_with(template), None)
    with pytest.raises(DataError, match="turn 3 of a conversation cannot be told from the rest"):
        chat.encode(TALK)


def test_what_a_template_refuses_is_told():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match="refuses turns of system, user, assistant, user, assistant: no system role"):
        Chat(tokenizer_with(template), None).encode(TALK)
    tokenizer = tokenizer_with()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="must have an end token"):
        Chat(tokenizer, PLAIN_TEMPLATE)
