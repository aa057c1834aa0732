"""A tiny BERT with a word-level tokenizer, and data that it can learn: what the training tests share."""

import csv
import json
import random
from pathlib import Path

import torch

WORDS = [f"word{i}" for i in range(20)]
SIGNS = {"positive": ["good", "fine", "great"], "negative": ["bad", "poor", "awful"]}


def save_tiny_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = special + WORDS + [sign for signs in SIGNS.values() for sign in signs]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pieces)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **names).save_pretrained(folder)


def tiny_config():
    from transformers import BertConfig

    return BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.2,  # at the usual 0.02 a random frozen model hardly tells words apart
    )


def save_tiny_model(folder: Path) -> Path:
    from transformers import BertModel

    torch.manual_seed(7)
    BertModel(tiny_config(), add_pooling_layer=False).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return `(text, label)`; each text holds one or two words that give its label away."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        label = sorted(SIGNS)[i % 2]
        words = draw.choices(WORDS, k=draw.randint(2, 8)) + draw.choices(SIGNS[label], k=draw.randint(1, 2))
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
