"""A tiny language model whose weights a library has quantised, in each way that runs on a CPU."""

import copy

import pytest
import torch
import transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

# name: (library, dtype of what is not quantised)
KINDS = {
    "bitsandbytes 8 bits": ("bitsandbytes", torch.float32),
    "bitsandbytes 4 bits": ("bitsandbytes", torch.float32),
    "bitsandbytes 4 bits, nf4, bfloat16": ("bitsandbytes", torch.bfloat16),
    "torchao int8": ("torchao", torch.bfloat16),
    "torchao int8, float32": ("torchao", torch.float32),
}
SERVING = {"torchao int4": ("torchao", torch.bfloat16)}  # no gradient passes through its weights


def save_plain(folder):
    """Write the model whose weights are quantised when it is loaded."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=128, use_cache=False)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder, kind):
    """Return the model, quantised anew; skip the test where the library is missing."""
    library, dtype = (KINDS | SERVING)[kind]
    pytest.importorskip(library, reason=f"pip install {library}")
    options = {"quantization_config": copy.deepcopy(_config(kind)), "dtype": dtype, "device_map": "cpu"}
    return transformers.LlamaForCausalLM.from_pretrained(folder, **options).eval()


def _config(kind):
    if kind == "torchao int4":
        int4 = pytest.importorskip("torchao.prototype.quantization.int4", reason="torchao has no int4 for CPUs")
        return transformers.TorchAoConfig(int4.PrototypeInt4WeightOnlyConfig(group_size=32))
    if kind.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    if kind.endswith("8 bits"):
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if "nf4" in kind else {}
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=KINDS[kind][1], **nf4)
