"""The options that say what is read."""

from dataclasses import dataclass
from typing import Any

from adapterx.cli.options.declaring import COUNT, DATA, REQUIRED, SHARE, SOURCES, option
from adapterx.cli.recipes import EVAL_FRACTION, MAX_LENGTH
from adapterx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The panel "Data"."""

    model: str = option(DATA, "Base model (required): a folder in the Hugging Face layout, or a hub name.", REQUIRED)
    data: tuple[str, ...] = option(
        DATA,
        "Training data (required): .csv .tsv .jsonl .json .parquet .arrow (or packed, .csv.gz), a pattern of such "
        "files, a folder as folder@split, or a dataset as name:configuration@split; repeat for several of the same "
        "columns.",
        REQUIRED,
        must=SOURCES,
        free=True,  # its content is compared
    )
    eval_data: tuple[str, ...] | None = option(DATA, "Held-out data, likewise.", must=SOURCES, free=True)
    eval_fraction: float | None = option(
        DATA, f"Without --eval-data: share of the data to hold out (default {EVAL_FRACTION}, 0 for none).", must=SHARE
    )
    text_column: str | None = option(DATA, "Column of the texts (default: text, sentence, review, ...).")
    label_column: str | None = option(
        DATA, "Column of the labels (default: label, category, ...); several for some tasks, as a,b,c."
    )
    label_separator: str | None = option(DATA, "What stands between the labels of a text, where there are several (,).")
    labels: tuple[str, ...] | None = option(
        DATA, "The classes in order, as neg,pos (default: those of the data, in order).", must=SOURCES
    )
    label_map: Any = option(  # noqa: RUF009
        DATA,
        "Other names for labels: old=new,old=new, or a file (.json object, .csv of two columns); repeat for several.",
        typed=tuple[str, ...],
    )
    streaming: bool | None = option(
        DATA, "For data larger than memory: keep texts on the disk of --output; nothing else changes.", free=True
    )
    window_stride: int | None = option(
        DATA,
        "Read long texts whole, in windows of --max-length tokens that share N with the one before.",
        must=("be 0 or more, and below 2^31", lambda value: 0 <= value < 2**31),
    )
    examples_per_class: int | None = option(DATA, "Few-shot: train on K examples of each class.", must=COUNT)
    max_length: int | None = option(
        DATA, f"Tokens read of each text (default {MAX_LENGTH}; 256 of words, 512 of language models)."
    )
    max_target_length: int | None = option(
        DATA, "Tokens of a target, and of what is generated (default 128).", must=COUNT
    )
    source_prefix: str | None = option(DATA, "What is put before each source, such as 'summarize: ' for T5.")

    def check_data(self) -> None:
        """Refuse what excludes each other.

        Raises:
            ConfigError: two options do.
        """
        if self.eval_data is not None and self.eval_fraction is not None:
            raise ConfigError("train: eval_data and eval_fraction exclude each other; give one of them")
