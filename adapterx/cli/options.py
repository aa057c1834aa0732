"""The options of `adapterx train`, each declared once: the command, its help, the checks and the record follow."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, InitVar, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
import typer

from adapterx.cli.paths import as_path
from adapterx.cli.recipes import BOTTLENECK_DIM, EVAL_FRACTION, INIT, MAX_LENGTH, RECIPES
from adapterx.cli.words import READ_FROM_A_WORD
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError
from adapterx.heads import POOLINGS

DATA, OUTPUT, TRAINING, ADAPTER = "Data", "Output", "Training", "Adapter"  # the panels of --help
REQUIRED = MISSING

Rule = tuple[str, Callable[[Any], bool]]  # what a value must do, in words and as a test
ANYTHING: Rule = ("not be empty", lambda value: value != "")
COUNT: Rule = ("be at least 1 and below 2^31", lambda value: 1 <= value < 2**31)
SHARE: Rule = ("be in [0, 1)", lambda value: 0.0 <= value < 1.0)
RATE: Rule = ("be a number above 0", lambda value: 0.0 < value < math.inf)
DECAY: Rule = ("be a number from 0 up", lambda value: 0.0 <= value < math.inf)
THREADS: Rule = ("lie between 1 and 1024", lambda value: 1 <= value <= 1024)
SEED: Rule = ("lie between 0 and 2^32 - 1", lambda value: 0 <= value < 2**32)


def one_of(*allowed: str) -> Rule:
    """Return the rule that a value is one of these."""
    return f"be one of {', '.join(allowed)}", allowed.__contains__


def option(panel: str, text: str, default: Any = None, *, must: Rule = ANYTHING, free: bool = False) -> Any:
    """Declare an option: panel and text of `--help`, default (None lets the method, model or data decide) and rule.

    A resumed run may differ from the first in a `free` one, which changes where and how fast, not what comes out.
    """
    return field(default=default, metadata={"panel": panel, "text": text, "must": must, "free": free})


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of one training run, checked, with the defaults of the method filled in.

    Args:
        adapter_values: fields of AdapterConfig; what is left out takes the defaults of `adapterx.cli.recipes`.

    Raises:
        ConfigError: a value breaks its rule, or two options exclude each other.
    """

    model: str = option(DATA, "Base model: a folder in the Hugging Face layout, or a hub name.", REQUIRED)
    data: str = option(
        DATA,
        "Training data: .csv .tsv .jsonl .json .parquet (packed ones too: .csv.gz), a pattern of such files, "
        "or a dataset as name:configuration@split.",
        REQUIRED,
        free=True,  # its content is compared
    )
    eval_data: str | None = option(DATA, "Held-out data, likewise.", free=True)
    eval_fraction: float | None = option(
        DATA, f"Without --eval-data: share of the data to hold out (default {EVAL_FRACTION}, 0 for none).", must=SHARE
    )
    text_column: str | None = option(DATA, "Column of the texts (default: text, sentence, review, ...).")
    label_column: str | None = option(DATA, "Column of the labels (default: label, category, ...).")
    examples_per_class: int | None = option(DATA, "Few-shot: train on K examples of each class.", must=COUNT)
    max_length: int | None = option(DATA, f"Tokens read of each text (default {MAX_LENGTH}).")

    output: Path = option(OUTPUT, "Folder of the run; new or empty.", REQUIRED, free=True)  # noqa: RUF009
    resume: bool = option(OUTPUT, "Continue an interrupted run; the other options must be the same.", False, free=True)
    overwrite: bool = option(OUTPUT, "Discard an earlier run in the output folder.", False, free=True)
    keep_checkpoints: bool = option(OUTPUT, "Keep the checkpoints when the run is complete.", False, free=True)

    method: str = option(
        TRAINING,
        "What is trained: adapters (default), head (on the frozen model), or full (every weight).",
        "adapters",
        must=one_of(*RECIPES),
    )
    pooling: str = option(
        TRAINING, "How tokens become one vector: mean (default), cls, last (decoders).", "mean", must=one_of(*POOLINGS)
    )
    epochs: int | None = option(TRAINING, "Passes over the data (default: the method's).", must=COUNT)
    learning_rate: float | None = option(TRAINING, "Peak learning rate (default: the method's).", must=RATE)
    head_learning_rate: float | None = option(TRAINING, "Peak learning rate of the head.", must=RATE)
    batch_size: int = option(TRAINING, "Examples in a batch, on each device.", 16, must=COUNT)
    warmup_ratio: float = option(TRAINING, "Share of the steps in which the rate rises.", 0.1, must=SHARE)
    weight_decay: float = option(TRAINING, "AdamW's weight decay.", 0.01, must=DECAY)
    head_dropout: float = option(TRAINING, "Dropout before the head's linear layer.", 0.1, must=SHARE)
    precision: str = option(
        TRAINING, "fp32 (default), bf16, or fp16 (GPU).", "fp32", must=one_of("fp32", "bf16", "fp16")
    )
    keep_best: bool = option(
        TRAINING, "Keep the epoch with the best held-out accuracy, not the last; then report on other data.", False
    )
    seed: int = option(TRAINING, "Seed of everything that is drawn (default 0).", 0, must=SEED)
    threads: int | None = option(
        TRAINING,
        "CPU threads (default: the machine's; with --resume, as many as before: the last digits depend on it).",
        must=THREADS,
        free=True,
    )
    device: str = option(
        TRAINING, "auto (default: a GPU where there is one) or cpu.", "auto", must=one_of("auto", "cpu"), free=True
    )

    adapter_values: InitVar[Mapping[str, Any] | None] = None
    adapter: AdapterConfig | None = field(init=False)  # None for the methods that attach none

    def __post_init__(self, adapter_values: Mapping[str, Any] | None) -> None:
        for declared in OPTIONS:
            value, (rule, holds) = getattr(self, declared.name), declared.metadata["must"]
            if value is not None and not holds(value):
                raise ConfigError(f"train: {declared.name} must {rule}, got {value!r}")
        self._set("adapter", self._adapter_config(adapter_values or {}))
        if self.resume and self.overwrite:
            raise ConfigError("train: --resume and --overwrite exclude each other")
        if self.eval_data is not None and self.eval_fraction is not None:
            raise ConfigError("train: eval_data and eval_fraction exclude each other; give one of them")
        if self.keep_best and self.eval_fraction == 0.0:
            raise ConfigError("train: keep_best needs examples to choose by: give eval_data or eval_fraction above 0")
        if self.precision == "fp16" and not self.uses_gpu:
            raise ConfigError("train: precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
        by_default = RECIPES[self.method] | {"eval_fraction": 0.0 if self.eval_data is not None else EVAL_FRACTION}
        for name, value in by_default.items():
            if getattr(self, name) is None:
                self._set(name, value)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def _adapter_config(self, given: Mapping[str, Any]) -> AdapterConfig | None:
        if self.method == "adapters":
            sized = any(given.get(name) is not None for name in ("bottleneck_dim", "reduction_factor"))
            return AdapterConfig(**({"init": INIT} | ({} if sized else {"bottleneck_dim": BOTTLENECK_DIM}) | given))
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            raise ConfigError(f"train: {named} can only be used with --method adapters, got --method {self.method}")
        return None

    def replaced(self, **values: Any) -> "TrainOptions":
        """Return the same options but for these values, which are not checked again."""
        other = copy.copy(self)
        for name, value in values.items():
            other._set(name, value)
        return other

    @property
    def uses_gpu(self) -> bool:
        """Whether the run goes to a GPU."""
        return self.device != "cpu" and torch.cuda.is_available()

    def record(self) -> dict[str, Any]:
        """Return every value that the result depends on, as JSON can hold it; a resumed run must have the same."""
        kept = {declared.name: getattr(self, declared.name) for declared in OPTIONS if not declared.metadata["free"]}
        return kept | {"adapter": self.adapter.to_dict() if self.adapter else None}


OPTIONS = tuple(declared for declared in fields(TrainOptions) if declared.metadata)

# One line for each field of AdapterConfig, which gives it its name and its type, and for the second way to say targets.
ADAPTER_OPTIONS = {
    "bottleneck_dim": f"Width of the bottleneck (default {BOTTLENECK_DIM}), or one per block: default=64,0=8.",
    "reduction_factor": "Hidden size divided by the width, instead; likewise.",
    "placement": "sequential (default), parallel, normed_sum (behind the LayerNorm of a BERT-like sublayer), "
    "residual_sum or parallel_residual (on the residual stream of models such as GPT-2 and Llama).",
    "added_to": "With normed_sum: sum (default), sum_plus_residual, normed_plus_residual, normed; with residual_sum: "
    "sum, sum_plus_residual.",
    "positions": "attention, feed_forward, cross_attention; repeat for several (default: the first two).",
    "activation": "gelu (default), relu, silu, tanh, mish, prelu, ...",
    "scaling": "A number (default 1), learned, or learned_per_channel.",
    "dropout": "Dropout of the branch (default 0).",
    "down_bias": "Bias of the down projection (default: yes).",
    "up_bias": "Bias of the up projection (default: yes).",
    "init": f"houlsby, xavier or he (default {INIT}).",
    "init_up": "zero (default: starts as the base model) or near_zero.",
    "norm_before": "A LayerNorm before the down projection (default: no).",
    "norm_after": "A LayerNorm of the branch, or of the sum with what it is added to: branch or sum (default: none).",
    "gating": "Multiply the branch of each text by a trained gate (default: no).",
    "phm": "Compacter's layers, as dim=4, or dim=4,rank=2,shared_weight=true: values of PHMConfig (default: none).",
    "stochastic_depth": "Probability of dropping the whole branch of a text in training (default 0).",
    "layers": "Only these blocks, such as 0,1,8-11 (default: all).",
    "target_modules": "Suffix of module names to adapt instead; repeat for several.",
    "target_regex": "Regular expression for whole module names, instead.",
    "invertible": "An invertible adapter at the embeddings: nice or glow (default: none).",
    "invertible_reduction_factor": "Half the width of the embeddings divided by that of its bottleneck (default 2).",
    "train_norms": "Train copies of the model's norms in the adapted blocks too (default: no).",
    "modules_to_save": "Module of which the adapter trains a copy; repeat for several.",
}


def adapter_values(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of AdapterConfig that were typed; what was not is left to its default."""
    given = {name: value for name, value in typed.items() if value not in (None, [])}
    given |= {name: read(given[name]) for name, read in READ_FROM_A_WORD.items() if name in given}
    if "target_regex" in given:
        if "target_modules" in given:
            raise ConfigError("train: --target-modules and --target-regex exclude each other")
        given["target_modules"] = given.pop("target_regex")
    return given


def _typed(name: str, kind: Any) -> Any:
    """Return the type of a field as it is typed: a tuple by repeating the option."""
    if name in READ_FROM_A_WORD:
        return str | None
    repeated = any(get_origin(each) is tuple for each in (kind, *get_args(kind)))
    return (list[str] if repeated else kind) | None


def parameters() -> list[inspect.Parameter]:
    """Return what the command takes, for typer, in the order of `--help`."""

    def parameter(name: str, kind: Any, panel: str, text: str | None, default: Any = None) -> inspect.Parameter:
        path = {"parser": as_path, "metavar": "PATH"} if kind is Path else {}
        shown = Annotated[kind, typer.Option(help=text, rich_help_panel=panel, show_default=False, **path)]
        default = inspect.Parameter.empty if default is REQUIRED else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=shown, default=default)

    own = [parameter(o.name, o.type, o.metadata["panel"], o.metadata["text"], o.default) for o in OPTIONS]
    kinds = get_type_hints(AdapterConfig)
    names = dict.fromkeys([*ADAPTER_OPTIONS, *kinds])
    return own + [parameter(n, _typed(n, kinds.get(n, str)), ADAPTER, ADAPTER_OPTIONS.get(n)) for n in names]


def takes_train_options(command: Callable[[TrainOptions], None]) -> Callable[..., None]:
    """Let typer see every option as a parameter of the command; the command itself gets them as a whole."""

    @functools.wraps(command)
    def typed(**given: Any) -> None:
        own = {declared.name: given.pop(declared.name) for declared in OPTIONS}
        command(TrainOptions(**own, adapter_values=adapter_values(given)))

    typed.__signature__ = inspect.Signature(parameters())
    return typed
