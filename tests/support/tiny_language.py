"""Tiny language models with byte-level tokenizers: a Llama that goes on, a T5 that turns one text into another."""

import functools
import random

import torch

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>"]
ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack"}


@functools.cache
def _trained():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [f"what does the {animal} say? the {animal} says {sound}." for animal, sound in ANIMALS.items()]
    corpus += ["user\n", "assistant\n", "system\n", "### User:\n", "### Assistant:\n"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus * 3, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer.to_str()


def tokenizer_with(template=None):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
        model_max_length=128,
    )
    tokenizer.chat_template = template
    return tokenizer


def save_tiny_llama(folder, template=None, *, steps=0):
    """Save a model that has been trained on plain texts for some steps, which then know words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = LlamaConfig(vocab_size=400, tie_word_embeddings=True, initializer_range=0.1, **sizes, **more)
    model, tokenizer = LlamaForCausalLM(config), tokenizer_with(template)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = tokenizer([f"{asked}\n{said}</s>" for asked, said in questions(32)], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_t5(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(5)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 400}
    config = T5Config(**sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer_with().save_pretrained(folder)
    return folder


def questions(count, seed=0):
    """Return questions and their answers."""
    draw = random.Random(seed)
    animals = [draw.choice(sorted(ANIMALS)) for _ in range(count)]
    return [(f"what does the {animal} say?", f"the {animal} says {ANIMALS[animal]}.") for animal in animals]
