"""How many tokens a model can take in one sequence: one rule for the exporters and the command line."""

from typing import Any

from torch import nn

# Modules with one row for each position: BERT and its kin, BART and OPT, GPT-2.
_TABLES = ("position_embeddings", "embed_positions", "wpe")
_NUMBERS = ("max_position_embeddings", "max_seq_len")  # of the config; MPT uses the second


def max_positions(model: nn.Module, config: Any) -> int | None:
    """Return the longest sequence that a model takes, in tokens; None: it knows no positions that could run out.

    Tables of positions count first, since they may serve fewer tokens than the config says. Where a model computes its
    positions, as rotary ones, it is the number in the config up to which it was made. Models whose positions are
    relative, such as T5, XLNet, BLOOM and DeBERTa-v3, have neither.
    """
    limits = [rows for name, module in model.named_modules() if (rows := _usable_rows(name, module)) is not None]
    if not _only_relative(config):
        numbers = (getattr(config, number, None) for number in _NUMBERS)
        limits += [number for number in numbers if isinstance(number, int) and number > 0]  # XLNet says -1
    return min(limits, default=None)


def _usable_rows(name: str, module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    if not name.endswith(_TABLES) or weight is None or weight.dim() != 2:
        return None
    offset = getattr(module, "offset", 0)  # BART and OPT leave their first two rows empty
    if getattr(module, "padding_idx", None) is not None and name.endswith("position_embeddings"):
        offset = module.padding_idx + 1  # RoBERTa and its kin count positions from behind the one for padding
    return weight.shape[0] - offset


def _only_relative(config: Any) -> bool:
    if getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True):
        return True  # DeBERTa-v3
    return bool(getattr(config, "alibi", False))  # Falcon, where its keys are biased by their distance
