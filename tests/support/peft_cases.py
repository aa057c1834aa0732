"""Tiny models wrapped by PEFT, the figures to compare them by, and what PEFT itself warns of."""

import pytest
import torch

# What PEFT does with transformers of the same week; nothing of it is ours.
PEFTS_OWN = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
BERT = {"vocab_size": 60, **SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **SIZES}
IDS = torch.arange(3, 24).view(3, 7)


def bert(kind="BertForSequenceClassification", **options):
    import transformers

    torch.manual_seed(3)
    return getattr(transformers, kind)(transformers.BertConfig(**BERT, **options)).eval()


def llama(**options):
    import transformers

    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **options)).eval()


def t5():
    import transformers

    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def randomise(model, seed=1):
    """Give everything that trains other values, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=IDS, **options).logits


def trained(model):
    """Return the names of the parameters that train."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
