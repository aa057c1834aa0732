"""Sequence-to-sequence modelling: turn one text into another, with an encoder-decoder and its own head."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adapterx.cli.data.examples import Examples
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.language_models import load_language_model
from adapterx.cli.models import encode
from adapterx.cli.process import is_main_process
from adapterx.cli.tasks.batches import device_of, encoder_of
from adapterx.cli.tasks.generation import Generation, generate
from adapterx.cli.tasks.language import LANGUAGE_RECIPES, token_scores
from adapterx.cli.tasks.task import Asked, Encoded, Encoder, Json, Run, Task
from adapterx.cli.tasks.text_pairs import ANSWER, read_pairs, sources_to_rewrite
from adapterx.errors import CheckpointError, DataError, ExportError, speaker
from adapterx.heads.labels import IGNORED

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

MAX_TARGET_LENGTH = 128
USUAL = {"max_target_length": MAX_TARGET_LENGTH, "num_beams": 1, "source_prefix": None}


class Seq2SeqLM(Task):
    """Cross entropy of the target's tokens; evaluation generates."""

    name = "seq2seq-lm"
    aliases = ("text2text-generation", "summarization", "translation", "seq2seq_lm")
    about = "turning one text into another, such as its summary or translation"
    recipes: ClassVar = {method: recipe | USUAL for method, recipe in LANGUAGE_RECIPES.items()}
    options = frozenset(USUAL)
    max_length = 512
    eval_batch_size = 16
    figures = ("exact_match", "bleu", "chrf", "loss")
    answer = ANSWER
    generates = True
    trainer = "AdapterSeq2SeqTrainer"
    trainer_arguments = "Seq2SeqTrainingArguments"

    # -- data

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read sources and targets."""
        return read_pairs(source, asked, default_split=default_split)

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return nothing: texts bring nothing that is to be remembered."""
        return {}

    def check(self, examples: Examples, known: Json, source: str | Sources) -> None:
        """Refuse nothing."""

    # -- model

    def load(self, model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
        """Load the model with its own head.

        Raises:
            CheckpointError: see `load_language_model`; or its tokenizer wants to be told languages, as NLLB's does.
        """
        tokenizer, base = load_language_model(model, "AutoModelForSeq2SeqLM")
        if hasattr(tokenizer, "set_src_lang_special_tokens"):
            raise CheckpointError(
                f"{speaker()}: {model} must be a model for one pair of languages, {type(tokenizer).__name__} wants to "
                "be told the source's and the target's, which would be guessed; train it with AdapterSeq2SeqTrainer"
            )
        return tokenizer, base

    def build(self, base: nn.Module, settings: Mapping[str, Any], known: Json) -> nn.Module:
        """Return the model as it is."""
        return base

    def adapted(self, model: nn.Module) -> nn.Module:
        """Return the model: adapters hang on it as a whole."""
        return model

    def encode(self, examples: Examples, known: Json, encoder: Encoder) -> Encoded:
        """Encode sources and targets; `cut` says whether something of either is not read."""
        settings, tokenizer = encoder.settings, encoder.tokenizer
        rows = self._sources(examples.texts, encoder)
        targets = tokenizer(text_target=examples.labels, truncation=True, max_length=settings["max_target_length"])
        found = []
        for row, labels, text in zip(rows, targets["input_ids"], examples.labels, strict=True):
            if all(token in tokenizer.all_special_ids and token != tokenizer.unk_token_id for token in labels):
                raise DataError(f"{speaker()}: a target must have tokens, the tokenizer finds none in {text[:80]!r}")
            cut = len(row["input_ids"]) >= encoder.max_length or len(labels) >= settings["max_target_length"]
            found.append(row | {"labels": labels, "target": text, "cut": cut})
        return found

    def _sources(self, texts: Sequence[str], encoder: Encoder) -> Encoded:
        prefix = encoder.settings["source_prefix"] or ""
        prefixed = [prefix + text for text in texts]
        rows = encode(encoder.tokenizer, prefixed, encoder.max_length, embedded=encoder.embedded)
        return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]  # no encoder reads more

    def unread(self, examples: Examples, rows: Encoded, max_length: int) -> str | None:
        """Return how many sources or targets reach the limit."""
        full = sum(row["cut"] for row in rows)
        told = f"{full} of {len(rows)} examples reach {max_length} tokens, or the targets' limit; what lies beyond is "
        return told + "not read (--max-length, --max-target-length)" if full else None

    # -- training

    def collator(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module) -> Any:
        """Pad sources and targets of a batch, and prepare what the decoder reads."""
        import transformers

        return transformers.DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED)

    def for_arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Let the Trainer generate where it evaluates."""
        return {
            "predict_with_generate": True,
            "generation_max_length": settings["max_target_length"] + 1,  # the decoder's start counts
            "generation_num_beams": settings["num_beams"],
        }

    def scorer(
        self, rows: Encoded, known: Json, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Score the texts that were generated."""

        def scores(p: "EvalPrediction") -> dict[str, float]:
            ids = torch.as_tensor(p.predictions)
            ids = ids.masked_fill(ids == IGNORED, tokenizer.pad_token_id)
            found = tokenizer.batch_decode(ids, skip_special_tokens=True)
            return text_scores(found, [row["target"] for row in rows])

        return scores

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by the loss, which needs no further library."""
        return "loss", False

    # -- files

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write nothing: the head is the model's own."""

    def restore(self, base: nn.Module, folder: Path, record: Json) -> nn.Module:
        """Return the model as it is."""
        return base

    def beside_export(self, run: Run) -> dict[str, Any]:
        """Refuse: there is no export of encoder-decoders with their decoder."""
        raise ExportError(
            f"{speaker()}: runs of {self.name} cannot be exported: the model generates with an encoder and a decoder; "
            "use predict, or load the adapter into the model"
        )

    # -- use

    @torch.inference_mode()
    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run by its loss, and by the texts that it generates as in training."""
        rows = self.encode(examples, run.record, encoder_of(run))
        collate, device = self.collator(run.tokenizer, run.model), device_of(run)
        run.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        loss, tokens = 0.0, 0
        for start in range(0, len(rows), self.eval_batch_size):
            part = rows[start : start + self.eval_batch_size]
            batch = collate([{k: v for k, v in row.items() if k not in ("target", "cut")} for row in part]).to(device)
            labels = batch.pop("labels")
            logits = run.model(**batch).logits
            # A decoder's output stands at the place of its label; `token_scores` compares with the next one.
            shifted = nn.functional.pad(labels, (1, 0), value=IGNORED)
            found = token_scores(nn.functional.pad(logits, (0, 0, 0, 1)), shifted).sum(dim=0)
            loss, tokens = loss + found[0].item(), tokens + int(found[1].item())
        if loss != loss:
            raise CheckpointError(f"{speaker()}: the losses of a run must be finite, those of {run.folder} are not")
        return {"loss": loss / tokens} | text_scores(self._generated(run, rows, Generation()), examples.labels)

    def wanted(self, texts: list[str], file: str | None, asked: Asked) -> Wanted:
        """Gather sources."""
        return sources_to_rewrite(texts, file, asked)

    def predict(self, run: Run, wanted: Wanted, generation: Generation | None = None) -> list[Json]:
        """Return what each source is turned into."""
        rows = self._sources(wanted.texts, encoder_of(run))
        answers = self._generated(run, rows, generation or Generation())
        return [
            {**columns, "text": text, "generated_text": answer}
            for columns, text, answer in zip(wanted.columns, wanted.texts, answers, strict=True)
        ]

    def _generated(self, run: Run, rows: Encoded, generation: Generation) -> list[str]:
        settings = run.record["options"]
        beams = None if generation.temperature else settings["num_beams"]
        usual = {"max_new_tokens": settings["max_target_length"], "num_beams": beams}
        chosen = Generation(**(usual | generation.given()))
        return generate(run, [row["input_ids"] for row in rows], chosen, encoder=True)

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return the source and what it is turned into."""
        return prediction["text"], prediction["generated_text"]


@functools.cache  # so that it is said once
def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        if is_main_process():
            print("BLEU and chrF are left out, they need sacrebleu: pip install 'adapterx[text]'", file=sys.stderr)
        return None
    return sacrebleu


def text_scores(generated: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the share of texts that are exactly right, and BLEU and chrF where sacrebleu is installed."""
    pairs = [(text.strip(), target.strip()) for text, target in zip(generated, targets, strict=True)]
    scores = {"exact_match": sum(text == target for text, target in pairs) / len(pairs)}
    sacrebleu = _sacrebleu()
    if sacrebleu is None:
        return scores
    texts, right = [text for text, _ in pairs], [[target for _, target in pairs]]
    scores["bleu"] = sacrebleu.corpus_bleu(texts, right).score
    return scores | {"chrf": sacrebleu.corpus_chrf(texts, right).score}
