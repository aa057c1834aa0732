"""Tiny random models under the names that the tutorials ask a hub for, as folders in the working folder."""

from pathlib import Path

import torch

SIZES = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_models(folder: Path) -> None:
    """Write every model of the tutorials below a folder."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    bert = BertConfig(vocab_size=300, max_position_embeddings=160, initializer_range=0.2, **SIZES)
    llama = LlamaConfig(vocab_size=300, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SIZES)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    t5 = T5Config(vocab_size=300, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **sizes)
    for name, model, chat in (
        ("bert-base-uncased", BertModel(bert, add_pooling_layer=False), None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", LlamaForCausalLM(llama), CHAT),
        ("google-t5/t5-small", T5ForConditionalGeneration(t5), None),
    ):
        model.save_pretrained(folder / name)
        save_tokenizer(folder / name, chat, bert=name.startswith("bert"))


def save_tokenizer(folder: Path, chat: str | None, *, bert: bool) -> None:
    """Write a tokenizer of bytes, which knows every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(special + letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if bert else {}
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=160, **names)
    own.add_special_tokens({"additional_special_tokens": special[4:]})
    own.chat_template = chat
    own.save_pretrained(folder)
