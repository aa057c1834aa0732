"""Tiny adapted models of every kind that can be exported, and their outputs computed without the exporter's code."""

import torch
import transformers

from adapterx import AdapterConfig, adapter_parameters, attach
from adapterx.heads import SequenceClassifier

SIZES = {
    "vocab_size": 101,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SIZES |= {"max_position_embeddings": 40}
LLAMA = SIZES | {"num_key_value_heads": 1, "num_hidden_layers": 2}
SHAPES = ((1, 1), (2, 8), (3, 19), (5, 40))


def randomise(model):
    """Give all matrices and every adapter weights that matter; fresh ones change next to nothing."""
    generator = torch.Generator().manual_seed(5)
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if parameter.dim() > 1]
    for _, parameter in dict([*matrices, *adapter_parameters(model)]).items():
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adapt(model, target=None, **values):
    attach(model if target is None else target, AdapterConfig(bottleneck_dim=4, **values))
    return randomise(model).eval()


def bert_classifier():
    """Our own classifier, sequential, both positions."""
    model = SequenceClassifier(transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False), 3)
    return adapt(model, model.base_model)


def roberta_classifier():
    """Hugging Face's classifier, parallel, with a trained copy of its head; positions depend on the padding token."""
    config = transformers.RobertaConfig(
        **SIZES | {"max_position_embeddings": 42, "type_vocab_size": 1, "num_labels": 2}
    )
    return adapt(
        transformers.RobertaForSequenceClassification(config),
        placement="parallel",
        activation="relu",
        modules_to_save=("classifier",),
    )


def distilbert_encoder():
    """A bare encoder, no biases."""
    config = transformers.DistilBertConfig(
        vocab_size=101, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=40
    )
    return adapt(transformers.DistilBertModel(config), down_bias=False, up_bias=False, activation="silu", scaling=0.5)


def gpt2_lm():
    """A decoder with its language-model head, one learned scaling."""
    config = transformers.GPT2Config(vocab_size=101, n_embd=16, n_layer=1, n_head=2, n_positions=40)
    return adapt(transformers.GPT2LMHeadModel(config), scaling="learned", activation="tanh")


def llama_lm():
    """A decoder with grouped queries, parallel, learned scaling per channel."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    return adapt(model, placement="parallel", scaling="learned_per_channel", activation="gelu_tanh")


def span_model():
    """An encoder that marks where an answer starts and ends."""
    config = transformers.DistilBertConfig(
        vocab_size=101, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=40
    )
    return adapt(transformers.DistilBertForQuestionAnswering(config))


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOWS = LLAMA | SPECIAL | {"sliding_window": 8}


def modernbert_encoder():
    """An encoder in which most blocks see a window of eight tokens."""
    values = SIZES | SPECIAL | {"num_hidden_layers": 3, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
    return adapt(transformers.ModernBertModel(transformers.ModernBertConfig(**values)))


def mistral_lm():
    """A decoder that sees a window of eight tokens."""
    return adapt(transformers.MistralForCausalLM(transformers.MistralConfig(**WINDOWS)))


def gemma3_lm():
    """A decoder with one block that sees a window and one that sees all."""
    values = WINDOWS | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    return adapt(transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**values)))


WINDOWED = {"modernbert": modernbert_encoder, "mistral": mistral_lm, "gemma3": gemma3_lm}

MODELS = {
    "bert": (bert_classifier, 2),
    "roberta": (roberta_classifier, 2),
    "distilbert": (distilbert_encoder, 2),
    "gpt2": (gpt2_lm, 2),
    "llama": (llama_lm, 4),
}


def inputs_at(model, batch, sequence):
    """Return named inputs; every row but the first ends in padding, row by row more."""
    config = model.config
    generator = torch.Generator().manual_seed(batch * 100 + sequence)
    ids = torch.randint(5, 101, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, sequence - 2 * row) :] = 0
    ids = ids.where(mask == 1, config.pad_token_id or 0)
    named = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        named["token_type_ids"] = torch.randint(0, 2, (batch, sequence), generator=generator)
    return named


@torch.no_grad()
def output_of(model, named):
    """Return the model's own output in eval mode."""
    result = model(**named)
    return result["logits"] if "logits" in result else result["last_hidden_state"]
