"""Causal language modelling: go on with texts, or answer in conversations; a decoder with its own head."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adapterx.active import disabled
from adapterx.adapters import adapter_names
from adapterx.chat import PLAIN_TEMPLATE, Chat
from adapterx.cli.data.examples import Examples
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.language_models import load_language_model
from adapterx.cli.rules import is_text
from adapterx.cli.tasks.batches import device_of, encoder_of
from adapterx.cli.tasks.conversations import ANSWER, prompts_to_answer, read_texts_or_conversations
from adapterx.cli.tasks.generation import Generation, generate
from adapterx.cli.tasks.language import LANGUAGE_RECIPES, token_scores
from adapterx.cli.tasks.task import Asked, Encoded, Encoder, Json, Run, Task
from adapterx.errors import CheckpointError, DataError, speaker
from adapterx.heads.labels import IGNORED

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

TEXTS, CONVERSATIONS = "texts", "conversations"


class CausalLM(Task):
    """Cross entropy of the next token: of every one in plain texts, of those of the answers in conversations."""

    name = "causal-lm"
    aliases = ("text-generation", "causal_lm", "language-modeling")
    about = "going on with texts, or answering in conversations"
    recipes: ClassVar = LANGUAGE_RECIPES
    max_length = 512
    eval_batch_size = 8  # each logit vector is as long as the vocabulary
    figures = ("perplexity", "token_accuracy", "tokens")
    recorded: ClassVar = {
        "form": (f"{TEXTS} or {CONVERSATIONS}", lambda value: value in (TEXTS, CONVERSATIONS)),
        "chat_template": ("a text or null", lambda value: value is None or is_text(value)),
    }
    answer = ANSWER
    generates = True

    # -- data

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read plain texts or conversations."""
        return read_texts_or_conversations(source, asked, default_split=default_split)

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return what the texts are; the template is known with the tokenizer."""
        return {"form": TEXTS if isinstance(examples.texts[0], str) else CONVERSATIONS, "chat_template": None}

    def check(self, examples: Examples, known: Json, source: str | Sources) -> None:
        """Refuse plain texts where conversations were learnt, and the other way round."""
        form = TEXTS if isinstance(examples.texts[0], str) else CONVERSATIONS
        if form != known["form"]:
            raise DataError(f"{speaker()}: {source} must hold {known['form']}, as in the training, it holds {form}")

    # -- model

    def load(self, model: str) -> "tuple[PreTrainedTokenizerBase, nn.Module]":
        """Load the model with its own head."""
        return load_language_model(model, "AutoModelForCausalLM")

    def meet(self, known: Json, tokenizer: "PreTrainedTokenizerBase") -> Json:
        """Give a tokenizer without chat template the plain one, where conversations are learnt."""
        plain = known["form"] == CONVERSATIONS and not tokenizer.chat_template
        return known | {"chat_template": PLAIN_TEMPLATE if plain else None}

    def build(self, base: nn.Module, settings: Mapping[str, Any], known: Json) -> nn.Module:
        """Return the model as it is."""
        return base

    def adapted(self, model: nn.Module) -> nn.Module:
        """Return the model: adapters hang on it as a whole."""
        return model

    def encode(self, examples: Examples, known: Json, encoder: Encoder) -> Encoded:
        """Return blocks of packed texts, or a row for each conversation in which an answer can be read."""
        if known["form"] == TEXTS:
            rows = packed(examples.texts, encoder)
        else:
            chat = Chat(encoder.tokenizer, known["chat_template"])
            rows = [row for messages in examples.texts if (row := _conversation(chat, messages, encoder.max_length))]
        if not rows:
            raise DataError(
                f"{speaker()}: the texts must hold something to learn within {encoder.max_length} tokens, they hold "
                "nothing (--max-length)"
            )
        largest = max(max(row["input_ids"]) for row in rows)
        if encoder.embedded is not None and largest >= encoder.embedded:
            token = encoder.tokenizer.convert_ids_to_tokens(largest)
            raise DataError(f"{speaker()}: a text must not hold the token {token!r}, for which there is no embedding")
        return rows

    def unread(self, examples: Examples, rows: Encoded, max_length: int) -> str | None:
        """Return how many conversations are cut or left out; packed texts are read whole."""
        if isinstance(examples.texts[0], str):
            return None
        cut, out = sum(row["cut"] for row in rows), len(examples.texts) - len(rows)
        told = f"{cut + out} of {len(examples.texts)} conversations exceed {max_length} tokens; what lies beyond is not"
        told += f" read, and {out} whose answers lie beyond are left out (--max-length)"
        return told if cut or out else None

    # -- training

    def collator(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module) -> Any:
        """Pad rows and labels of a batch."""
        import transformers

        return transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)

    def for_trainer(self) -> dict[str, Any]:
        """Keep of the predictions what the scores need."""
        return {"preprocess_logits_for_metrics": token_scores}

    def scorer(
        self, rows: Encoded, known: Json, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Score by perplexity over all tokens that are learnt."""
        return lambda p: _summed(torch.as_tensor(p.predictions))

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by perplexity, of which less is better."""
        return "perplexity", False

    # -- files

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write nothing: the head is the model's own."""

    def restore(self, base: nn.Module, folder: Path, record: Json) -> nn.Module:
        """Return the model as it is."""
        return base

    # -- use

    @torch.inference_mode()
    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run, and its model without the adapters."""
        rows = self.encode(examples, run.record, encoder_of(run))
        metrics: Json = _summed(self._scores(run, rows))
        if adapter_names(run.model):
            with disabled(run.model):
                metrics["base_perplexity"] = _summed(self._scores(run, rows))["perplexity"]
        return metrics

    def _scores(self, run: Run, rows: Encoded) -> Tensor:
        device, collate = device_of(run), self.collator(run.tokenizer, run.model)
        run.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        found = []
        for start in range(0, len(order), self.eval_batch_size):
            chosen = [rows[i] for i in order[start : start + self.eval_batch_size]]
            batch = collate([{name: value for name, value in row.items() if name != "cut"} for row in chosen])
            labels = batch.pop("labels")
            logits = run.model(**batch.to(device)).logits
            found.append(token_scores(logits, labels.to(device)).cpu())
        scores = torch.cat(found)
        if not scores.isfinite().all():
            raise CheckpointError(f"{speaker()}: the losses of a run must be finite, those of {run.folder} are not")
        return scores

    def wanted(self, texts: list[str], file: str | None, asked: Asked) -> Wanted:
        """Gather prompts."""
        return prompts_to_answer(texts, file, asked, conversations=asked.known["form"] == CONVERSATIONS)

    def predict(self, run: Run, wanted: Wanted, generation: Generation | None = None) -> list[Json]:
        """Return what follows each prompt."""
        stops, written = [], wanted.texts
        special = True
        if run.record["form"] == CONVERSATIONS:
            chat = Chat(run.tokenizer, run.record["chat_template"])
            written = [chat.write(messages, ask=True) for messages in wanted.texts]
            stops, special = [end for end in (chat.end_of_answer(),) if end is not None], False
        prompts = [_prompt(run.tokenizer, text, special=special) for text in written]
        answers = generate(run, prompts, generation or Generation(), stops=stops)
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in wanted.texts]
        return [
            {**columns, "text": text, "generated_text": answer}
            for columns, text, answer in zip(wanted.columns, texts, answers, strict=True)
        ]

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return the prompt and what follows."""
        return prediction["text"], prediction["generated_text"]


def packed(texts: list[str], encoder: Encoder) -> Encoded:
    """Return texts as blocks of `max_length` tokens, one behind the other with the end token between.

    Nothing is left out: the last block is shorter. A text may begin in the middle of a block, and its tokens see those
    of the text before, as usual where language models are trained.
    """
    tokenizer, stream = encoder.tokenizer, []
    for ids in tokenizer(texts)["input_ids"]:
        stream += ids
        if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
            stream.append(tokenizer.eos_token_id)
    starts = range(0, len(stream), encoder.max_length)
    blocks = [stream[start : start + encoder.max_length] for start in starts]
    return [
        {"input_ids": block, "attention_mask": [1] * len(block), "labels": list(block), "cut": False}
        for block in blocks
        if len(block) > 1  # a single token foretells nothing
    ]


def _conversation(chat: Chat, messages: list[dict[str, str]], max_length: int) -> Json | None:
    """Return the row of a conversation; None if no token of an answer lies within `max_length`."""
    ids, answers = chat.encode(messages)
    read = ids[:max_length]
    labels = [token if answer else IGNORED for token, answer in zip(read, answers, strict=False)]
    if all(label == IGNORED for label in labels[1:]):
        return None
    return {"input_ids": read, "attention_mask": [1] * len(read), "labels": labels, "cut": len(ids) > len(read)}


def _prompt(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # it would end the answer before it begins
    if not ids:
        raise DataError(f"{speaker()}: a prompt must have tokens, the tokenizer finds none in {text[:80]!r}")
    return ids


def _summed(scores: Tensor) -> dict[str, float]:
    loss, tokens, hits = scores.sum(dim=0).tolist()
    mean = loss / tokens
    perplexity = math.exp(min(mean, 700.0))  # beyond lies infinity
    return {"loss": mean, "perplexity": perplexity, "token_accuracy": hits / tokens, "tokens": int(tokens)}
