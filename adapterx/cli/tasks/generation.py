"""How texts are generated, and generating them in batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapterx.cli.tasks.batches import device_of
from adapterx.cli.tasks.task import Run
from adapterx.errors import ConfigError, DataError, speaker
from adapterx.positions import max_positions

BATCH_SIZE = 16
NEW_TOKENS = 128


@dataclass(frozen=True)
class Generation:
    """The options of generation; each is None where nothing was said.

    Args:
        max_new_tokens: tokens of an answer at most (128, or as many as fit).
        num_beams: beams that are searched (1: greedy).
        temperature: above 0 draws tokens, the more evenly the higher (0: the likeliest one is taken).
        top_p: draw out of the likeliest tokens that have this probability together.
        top_k: draw out of so many likeliest tokens.
        seed: of what is drawn (0).

    Raises:
        ConfigError: a value breaks its rule, or two exclude each other.
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": ("lie between 1 and 100,000", lambda value: 1 <= value <= 100_000),
            "num_beams": ("lie between 1 and 1000", lambda value: 1 <= value <= 1000),
            "temperature": ("be a number from 0 up", lambda value: 0 <= value < math.inf),
            "top_p": ("be above 0 and at most 1", lambda value: 0 < value <= 1),
            "top_k": ("be at least 1", lambda value: value >= 1),
            "seed": ("lie between 0 and 2^32 - 1", lambda value: 0 <= value < 2**32),
        }
        for name, (rule, holds) in rules.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{speaker()}: {name} must {rule}, got {value}")
        drawn = [name for name in ("top_p", "top_k", "seed") if getattr(self, name) is not None]
        if drawn and not self.temperature:
            raise ConfigError(f"{speaker()}: {drawn[0]} needs a temperature above 0; nothing is drawn without")
        if self.temperature and (self.num_beams or 1) > 1:
            raise ConfigError(f"{speaker()}: temperature and num_beams above 1 exclude each other")

    def given(self) -> dict[str, Any]:
        """Return what was said."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def for_transformers(self) -> dict[str, Any]:
        """Return it as `generate` takes it."""
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens or NEW_TOKENS, "num_beams": self.num_beams or 1}
        if not self.temperature:
            return found | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p or 1.0}
        return found | drawn | {"top_k": self.top_k or 0}


@torch.inference_mode()
def generate(
    run: Run, prompts: Sequence[list[int]], generation: Generation, *, stops: Sequence[int] = (), encoder: bool = False
) -> list[str]:
    """Return the texts that a run generates.

    Args:
        run: its model has `generate`.
        prompts: token ids.
        generation: how.
        stops: tokens that end an answer, besides those that the model knows.
        encoder: whether the prompts are read by an encoder, and the answers begin anew.

    Raises:
        DataError: a prompt leaves no room for an answer among the model's positions.
    """
    tokenizer, device = run.tokenizer, device_of(run)
    options = generation.for_transformers()
    room = max_positions(run.model, run.model.config)
    longest = max(len(ids) for ids in prompts)
    if not encoder and room is not None and generation.max_new_tokens is None:
        options["max_new_tokens"] = max(1, min(NEW_TOKENS, room - longest))
    if not encoder and room is not None and longest + options["max_new_tokens"] > room:
        raise DataError(
            f"{speaker()}: a prompt and {options['max_new_tokens']} new tokens must fit the model's {room} positions, "
            f"the longest prompt has {longest} tokens; see --max-new-tokens"
        )
    torch.manual_seed(generation.seed or 0)
    ends = run.model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, *stops} - {None}
    options |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        batch = _padded([prompts[i] for i in chosen], tokenizer.pad_token_id, left=not encoder).to(device)
        found = run.model.generate(**batch, **options)
        found = found if encoder else found[:, batch["input_ids"].shape[1] :]
        for i, text in zip(chosen, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            answers[i] = text
    return answers


class _Batch(dict):
    def to(self, device: torch.device) -> "_Batch":
        return _Batch({name: tensor.to(device) for name, tensor in self.items()})


def _padded(rows: list[list[int]], padding: int, *, left: bool) -> _Batch:
    width = max(map(len, rows))
    ids, mask = (torch.full((len(rows), width), value) for value in (padding, 0))
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, part], mask[i, part] = torch.tensor(row), 1
    return _Batch(input_ids=ids, attention_mask=mask)
