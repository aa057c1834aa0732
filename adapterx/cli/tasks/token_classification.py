"""Token classification: each word of a text has a tag, such as the one of a named entity."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from adapterx.cli.data.classes import listed_labels, renamed
from adapterx.cli.data.examples import Examples, ordered_labels, require_learnt
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import Wanted
from adapterx.cli.recipes import CLASSIFICATION
from adapterx.cli.rules import LABELS, is_text
from adapterx.cli.tasks.batches import batches_of, encoder_of, logits_of_batch
from adapterx.cli.tasks.headed import HeadedTask
from adapterx.cli.tasks.tagged_words import ANSWER, read_tagged_words, words_to_tag
from adapterx.cli.tasks.task import Asked, Encoded, Encoder, Json, Run
from adapterx.cli.tasks.words import Words, encode_words
from adapterx.heads import TokenClassifier
from adapterx.heads.labels import IGNORED
from adapterx.tagging import OUTSIDE, entities, entity_scores, scheme_of
from adapterx.training import classification_scores

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

UNREAD = -1  # in place of the tag of a word that the model has not read, where there is no tag "O"


class TokenClassification(HeadedTask):
    """The first piece of a word carries its tag; whole entities are scored where tags mark such."""

    classifier = TokenClassifier
    name = "token-classification"
    aliases = ("ner", "pos", "token_classification")
    about = "a tag for each word, such as named entities"
    recipes: ClassVar = {method: recipe | {"head_dropout": 0.1} for method, recipe in CLASSIFICATION.items()}
    options = frozenset({"head_dropout", "head_learning_rate", "labels", "label_map"})
    max_length = 256
    figures = ("f1", "precision", "recall", "macro_f1", "accuracy", "majority_baseline")
    recorded: ClassVar = {
        "labels": LABELS,
        "scheme": ("the name of a scheme or null", lambda value: value is None or is_text(value)),
    }
    answer = ANSWER

    # -- data

    def read(self, source: str | Sources, asked: Asked, *, default_split: str) -> Examples:
        """Read lists of words and tags, texts that hold them, or CoNLL files."""
        examples = read_tagged_words(source, asked, default_split=default_split)
        return renamed(examples, asked.settings.get("label_map"))

    def learn(self, examples: Examples, settings: Mapping[str, Any], source: str | Sources) -> Json:
        """Return the tags in order, and the scheme by which they mark entities."""
        found = [tag for tags in examples.labels for tag in tags]
        labels = listed_labels(settings, found, source)
        if labels is None:
            labels = sorted(ordered_labels(found, source), key=lambda label: label != OUTSIDE)
        return {"labels": labels, "scheme": scheme_of(examples.labels)}

    def check(self, examples: Examples, known: Json, source: str | Sources) -> None:
        """Refuse tags that do not occur in training."""
        require_learnt((tag for tags in examples.labels for tag in tags), known["labels"], source, "tag")

    # -- model

    def build(self, base: nn.Module, settings: Mapping[str, Any], known: Json) -> nn.Module:
        """Put a new head on the base model."""
        return TokenClassifier(base, len(known["labels"]), dropout=settings["head_dropout"])

    def encode(self, examples: Examples, known: Json, encoder: Encoder) -> Encoded:
        """Encode texts; `tags` are those of all words, `read` the words that are read, `labels` those of the tokens."""
        self.check(examples, known, "the data")
        ids = {label: i for i, label in enumerate(known["labels"])}
        texts = [Words.of_list(words) for words in examples.texts]
        encoded = encode_words(encoder.tokenizer, texts, encoder.max_length, embedded=encoder.embedded)
        rows = []
        for (row, first), tags in zip(encoded, examples.labels, strict=True):
            numbers = [ids[tag] for tag in tags]
            labels = [IGNORED] * len(row["input_ids"])
            read = [word for word, place in enumerate(first) if place is not None]
            for word in read:
                labels[first[word]] = numbers[word]
            rows.append(row | {"labels": labels, "tags": numbers, "read": read})
        return rows

    def unread(self, examples: Examples, rows: Encoded, max_length: int) -> str | None:
        """Return how many words are not read."""
        lost = [len(row["tags"]) - len(row["read"]) for row in rows]
        told = (
            f"{sum(lost)} words in {sum(map(bool, lost))} of {len(rows)} texts are not read, most of them beyond "
            f"{max_length} tokens (--max-length); they are learnt nothing from, and scored as predicted {OUTSIDE!r}"
        )
        return told if any(lost) else None

    # -- training

    def collator(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module) -> Any:
        """Pad texts and labels of a batch."""
        import transformers

        return transformers.DataCollatorForTokenClassification(tokenizer)

    def for_trainer(self) -> dict[str, Any]:
        """Keep the likeliest tags of the predictions only."""
        return {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(dim=-1)}

    def scorer(
        self, rows: Encoded, known: Json, tokenizer: "PreTrainedTokenizerBase"
    ) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Score entities, or tags where they mark none."""

        def scores(p: "EvalPrediction") -> dict[str, float]:
            guessed = [
                guess[label != IGNORED].tolist() for guess, label in zip(p.predictions, p.label_ids, strict=True)
            ]
            return _scores(guessed, rows, known)[0]

        return scores

    def best(self, known: Json) -> tuple[str, bool]:
        """Choose by the F1 of entities, or by accuracy."""
        return ("f1" if known["scheme"] else "accuracy"), True

    def baselines(self, training: Encoded, held_out: Encoded, known: Json) -> dict[str, float]:
        """Return the accuracy of always saying the tag that is most frequent in training."""
        counts = Counter(tag for row in training for tag in row["tags"])
        most_frequent = max(sorted(counts), key=counts.__getitem__)
        tags = [tag for row in held_out for tag in row["tags"]]
        return {"majority_baseline": tags.count(most_frequent) / len(tags)}

    # -- use

    @torch.inference_mode()
    def evaluate(self, run: Run, examples: Examples) -> Json:
        """Score a run, and each type of entity."""
        rows = self.encode(examples, run.record, encoder_of(run))
        guessed: list[list[int]] = [[] for _ in rows]
        loss, count = 0.0, 0
        for chosen, batch in batches_of(run, rows):
            logits = logits_of_batch(run, batch, [examples.texts[i] for i in chosen])
            for i, of_text, mask in zip(chosen, logits, batch["attention_mask"].cpu().bool(), strict=True):
                labels = torch.tensor(rows[i]["labels"])
                of_text = of_text[mask][labels != IGNORED]
                labels = labels[labels != IGNORED]
                guessed[i] = of_text.argmax(dim=-1).tolist()
                loss += nn.functional.cross_entropy(of_text, labels, reduction="sum").item()
                count += len(labels)
        whole, each = _scores(guessed, rows, run.record)
        metrics: Json = whole | {"loss": loss / count if count else None}
        metrics |= {"words": sum(len(row["tags"]) for row in rows)}
        metrics["words_not_read"] = metrics["words"] - sum(len(row["read"]) for row in rows)
        return metrics | ({"entities": each} if run.record["scheme"] else {})

    def wanted(self, texts: list[str], file: str | None, asked: Asked) -> Wanted:
        """Gather plain texts, and texts that are parted into words."""
        return words_to_tag(texts, file, asked)

    @torch.inference_mode()
    def predict(self, run: Run, wanted: Wanted) -> list[Json]:
        """Return for each text its words, their tags, and the entities with the characters that they span."""
        encoder = encoder_of(run)
        encoded = encode_words(run.tokenizer, wanted.texts, encoder.max_length, embedded=encoder.embedded)
        answers: list[Json] = [{} for _ in encoded]
        for chosen, batch in batches_of(run, [row for row, _ in encoded]):
            logits = logits_of_batch(run, batch, [wanted.texts[i].text for i in chosen])
            for i, of_text, mask in zip(chosen, logits, batch["attention_mask"].cpu().bool(), strict=True):
                probabilities = of_text[mask].softmax(dim=-1)
                answers[i] = wanted.columns[i] | _answer(run, wanted.texts[i], encoded[i][1], probabilities)
        return answers

    def cells(self, prediction: Json) -> tuple[str, ...]:
        """Return the words with their tags, but for those outside."""
        pairs = zip(prediction["words"], prediction["tags"], strict=True)
        return (" ".join(word if tag in (OUTSIDE, None) else f"{word}/{tag}" for word, tag in pairs),)


def _answer(run: Run, words: Words, first: list[int | None], probabilities: torch.Tensor) -> Json:
    best, ids = probabilities.max(dim=-1)
    unread = OUTSIDE if OUTSIDE in run.labels else None
    tags = [unread if place is None else run.labels[ids[place]] for place in first]
    found = []
    for entity in entities([tag or OUTSIDE for tag in tags]):
        start, end = words.spans[entity.start][0], words.spans[entity.end - 1][1]
        scores = [best[place].item() for place in first[entity.start : entity.end] if place is not None]
        score = round(sum(scores) / len(scores), 6)
        found.append({"type": entity.type, "text": words.text[start:end], "start": start, "end": end, "score": score})
    each = [words[i] for i in range(len(words))]
    return {"text": words.text, "words": each, "tags": tags, "entities": found}


def _scores(guessed: Sequence[Iterable[int]], rows: Encoded, known: Json) -> tuple[dict[str, float], Json]:
    """Return the scores of all words, those included that the model has not read.

    Args:
        guessed: for each row the tags of the words that were read, in order.
        rows: as `encode` returns them.
        known: what was learnt from the training data.
    """
    labels = known["labels"]
    unread = labels.index(OUTSIDE) if OUTSIDE in labels else UNREAD
    whole = []
    for row, of_read in zip(rows, guessed, strict=True):
        tags = [unread] * len(row["tags"])
        for word, tag in zip(row["read"], of_read, strict=True):
            tags[word] = tag
        whole.append(tags)
    truth = [row["tags"] for row in rows]
    of_tags = classification_scores([t for tags in whole for t in tags], [t for tags in truth for t in tags])
    if not known["scheme"]:
        return of_tags, {}
    named = [[[labels[tag] if tag >= 0 else OUTSIDE for tag in tags] for tags in part] for part in (whole, truth)]
    scores, each = entity_scores(*named)
    return {"f1": scores["f1"], "precision": scores["precision"], "recall": scores["recall"]} | {
        "accuracy": of_tags["accuracy"]
    }, each
