"""The base models under the files in tests/fixtures, built from a formula, so that no base weights are kept."""

from pathlib import Path

import torch
import transformers
from tiny_training import save_tiny_tokenizer

from adapterx import AdapterConfig, attach
from adapterx.heads import SequenceClassifier

FIXTURES = Path(__file__).parents[1] / "fixtures"
IDS = torch.tensor([[2, 5, 9, 13, 26, 3], [2, 24, 7, 3, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "token_type_ids": torch.zeros_like(IDS)}
TEXTS = ["good word3 word4", "word1 awful word2 poor", "word7"]

# One folder each: every scaling, both placements, blocks, a trained copy, both ways of naming modules, no biases.
ADAPTERS = {
    "learned": AdapterConfig(bottleneck_dim=3, scaling="learned", activation="relu"),
    "parallel": AdapterConfig(
        reduction_factor=8,
        placement="parallel",
        scaling="learned_per_channel",
        positions=("feed_forward",),
        layers=(1,),
    ),
    "with-copy": AdapterConfig(bottleneck_dim=2, scaling=0.5, activation="silu", modules_to_save=("pooler",)),
    "expression": AdapterConfig(
        bottleneck_dim=4, target_modules=r"encoder\.layer\.\d\.output\.dense", down_bias=False, up_bias=False
    ),
    "suffixes": AdapterConfig(
        bottleneck_dim=2, target_modules=("attention.output.dense",), activation="gelu_tanh", scaling=-2.0, dropout=0.1
    ),
}


def fill(module: torch.nn.Module, salt: int = 0) -> torch.nn.Module:
    """Set all parameters to numbers that no generator draws, spread over [-0.5, 0.5] (norms: around 1)."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(module.named_parameters()), start=1 + 1000 * salt):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            noise = torch.sin(steps * 12.9898 + i * 78.233) * 43758.5453
            values = (noise - noise.floor() - 0.5).view(parameter.shape)
            parameter.copy_(values + 1.0 if "LayerNorm.weight" in name else values)
    return module


def fill_added(model: torch.nn.Module) -> torch.nn.Module:
    """Fill adapters and trained copies."""
    added = [module for path, module in model.named_modules() if path.endswith((".adapterx", ".adapterx_copies"))]
    for salt, module in enumerate(added, start=1):
        fill(module, salt)
    return model


def base_model(**options: object) -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
    )
    return fill(transformers.BertModel(config, **options)).eval()


def save_base_model(folder: Path) -> Path:
    base_model(add_pooling_layer=False).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


def classifier() -> SequenceClassifier:
    """Return a classifier with a head as torch initialises it, not adapted."""
    return SequenceClassifier(base_model(add_pooling_layer=False), 3, pooling="cls", dropout=0.1).eval()


def adapted_classifier() -> SequenceClassifier:
    """Return a classifier whose adapter and head hold weights that matter."""
    model = classifier()
    attach(model.base_model, ADAPTERS["learned"], "learned")
    fill_added(model)
    fill(model.head, 100)
    return model.eval()


@torch.no_grad()
def outputs_of(model: torch.nn.Module) -> torch.Tensor:
    """Return the logits, or the hidden states with the pooled vector, `(batch, tokens, hidden)`, behind them."""
    result = model(**INPUTS)
    if "logits" in result:
        return result["logits"]
    return torch.cat([result["last_hidden_state"], result["pooler_output"][:, None]], dim=1)
