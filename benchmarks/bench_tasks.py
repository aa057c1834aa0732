"""Compare adapters with a head alone, LoRA of PEFT at as many parameters, and full fine-tuning, on three tasks.

    python benchmarks/bench_tasks.py conll --seeds 0 1      # entities, DistilBERT cased
    python benchmarks/bench_tasks.py brown --seeds 0 1      # language, SmolLM2-135M on a genre it is to write in
    python benchmarks/bench_tasks.py reverse --seeds 0 1    # sequence to sequence, a tiny random T5

One loop trains all of them: AdamW, the rate rising for a tenth of the steps and falling to zero, batches in one order
per seed. Rates are those usual for each method; none was tuned on the examples of the table (`--split dev` has others).
LoRA (on the query and value projections, the usual choice) has the rank that comes nearest to the adapters' number of
parameters. Rows are appended to benchmarks/results/tasks.csv.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import task_recipes
import torch
from harness import RESULTS, append_rows, environment
from torch import nn

import adapterx
from adapterx.tagging import entity_scores

METHODS = ("head", "adapters", "lora", "full")
COLUMNS = (
    *("benchmark", "task", "method", "metric", "value", "before", "seed", "split", "train_examples", "test_examples"),
    *("epochs", "learning_rate", "trainable_parameters", "trainable_fraction", "train_seconds"),
    *("threads", "device", "torch", "adapterx", "commit", "date"),
)
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A model, data for it, and how it is scored.

    Args:
        model: builds the model with its head, seeded.
        train: examples to train on.
        test: examples to score.
        collate: a batch of examples as the model takes it.
        score: the metric's value for a model.
        metric: its name.
        head: qualified names of what is trained alone by the method head, and by all others too.
        query_and_value: ends of the names that LoRA adapts.
        width: of the adapters' bottleneck.
        rates: peak learning rate by method.
        epochs: passes over the data.
        batch_size: examples in a batch.
    """

    model: Callable[[], nn.Module]
    train: list[Any]
    test: list[Any]
    collate: Callable[[list[Any]], Batch]
    score: Callable[[nn.Module, list[Any]], float]
    metric: str
    head: tuple[str, ...]
    query_and_value: tuple[str, ...]
    width: int
    rates: dict[str, float]
    epochs: int
    batch_size: int


def conll(options: argparse.Namespace) -> Task:
    """Entities of CoNLL-2003; scored by the F1 of whole entities."""
    from transformers import AutoTokenizer, DistilBertForTokenClassification

    folder = task_recipes.distilbert_cased(options.recipes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    splits = task_recipes.conll(options.recipes)
    tags = sorted({tag for _, each in splits["train"] for tag in each})

    def encoded(sentence: task_recipes.Sentence) -> dict[str, list[int]]:
        words, own = sentence
        row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=128)
        ids, seen = [], set()
        for word in row.word_ids():
            ids.append(-100 if word is None or word in seen else tags.index(own[word]))
            seen.add(word)
        return {"input_ids": row["input_ids"], "labels": ids}

    def model() -> nn.Module:
        return DistilBertForTokenClassification.from_pretrained(folder, num_labels=len(tags))

    def collate(rows: list[dict[str, list[int]]]) -> Batch:
        return padded(rows, tokenizer.pad_token_id)

    def score(model: nn.Module, rows: list[Any]) -> float:
        truth, found = [], []
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]))  # entities are counted in any order
        for batch in batches(by_length, 32, collate):
            best = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
            for guess, label in zip(best, batch["labels"], strict=True):
                read = label != -100
                found.append([tags[i] for i in guess[read]])
                truth.append([tags[i] for i in label[read]])
        return entity_scores(found, truth)[0]["f1"]

    train = [encoded(sentence) for sentence in splits["train"][: options.train or 2000]]
    test = splits["test"] if options.split == "test" else splits["valid"][:1000]
    return Task(
        model=model, train=train, test=[encoded(sentence) for sentence in test[: options.test]], collate=collate,
        score=score, metric="entity F1", head=("classifier",), query_and_value=("q_lin", "v_lin"), width=32,
        rates={"head": 5e-3, "adapters": 1e-3, "lora": 1e-3, "full": 5e-5}, epochs=3, batch_size=16,
    )  # fmt: skip


def brown(options: argparse.Namespace) -> Task:
    """Romance of the Brown corpus; scored by the perplexity of texts that were not trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = task_recipes.smollm2(options.recipes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = task_recipes.brown(options.recipes)["p"]
    parts = {"train": texts[:17], "dev": texts[17:21], "test": texts[21:]}

    def blocks(texts: list[str], length: int = 256) -> list[dict[str, list[int]]]:
        ids = [number for text in texts for number in tokenizer(text)["input_ids"]]
        whole = range(0, len(ids) - length + 1, length)
        return [{"input_ids": ids[i : i + length], "labels": ids[i : i + length]} for i in whole]

    def score(model: nn.Module, rows: list[Any]) -> float:
        losses = [model(**batch).loss.item() * len(batch["labels"]) for batch in batches(rows, 4, collate)]
        return math.exp(sum(losses) / len(rows))  # all blocks are of one length

    def collate(rows: list[dict[str, list[int]]]) -> Batch:
        return padded(rows, 0)

    return Task(
        model=lambda: AutoModelForCausalLM.from_pretrained(folder), train=blocks(parts["train"])[: options.train],
        test=blocks(parts[options.split])[: options.test], collate=collate, score=score, metric="perplexity",
        head=("model.norm",), query_and_value=("q_proj", "v_proj"), width=16,
        rates={"head": 1e-3, "adapters": 3e-4, "lora": 3e-4, "full": 2e-5}, epochs=1, batch_size=4,
    )  # fmt: skip


def reverse(options: argparse.Namespace) -> Task:
    """Words to be said in reverse order, by a random T5 of two layers; scored by the loss, which must fall."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )

    def rows(count: int, seed: int) -> list[dict[str, list[int]]]:
        draw = random.Random(seed)
        words = [[draw.randrange(2, 40) for _ in range(draw.randint(3, 8))] for _ in range(count)]
        return [{"input_ids": [*each, 1], "labels": [*reversed(each), 1]} for each in words]

    def model() -> nn.Module:
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config)

    def score(model: nn.Module, rows: list[Any]) -> float:
        sums = [
            (model(**batch).loss.item(), (batch["labels"] != -100).sum().item()) for batch in batches(rows, 64, collate)
        ]
        return sum(loss * count for loss, count in sums) / sum(count for _, count in sums)

    def collate(rows: list[dict[str, list[int]]]) -> Batch:
        return padded(rows, 0)

    seeds = {"test": 2, "dev": 3}
    return Task(
        model=model, train=rows(options.train or 4000, 1), test=rows(options.test or 500, seeds[options.split]),
        collate=collate, score=score, metric="loss", head=("shared",), query_and_value=("q", "v"), width=16,
        rates={"head": 3e-3, "adapters": 3e-3, "lora": 3e-3, "full": 1e-3}, epochs=6, batch_size=32,
    )  # fmt: skip


TASKS = {"conll": conll, "brown": brown, "reverse": reverse}


def padded(rows: list[dict[str, list[int]]], pad: int) -> Batch:
    """Pad the rows of a batch at their right ends."""
    fills = {"input_ids": pad, "labels": -100}
    batch = {
        name: nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)
        for name, fill in fills.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
    return batch | {"attention_mask": mask.long()}


def batches(rows: list[Any], size: int, collate: Callable[[list[Any]], Batch]) -> Iterator[Batch]:
    """Yield all rows in order."""
    for i in range(0, len(rows), size):
        yield collate(rows[i : i + size])


def prepared(task: Task, method: str) -> nn.Module:
    """Build the model and make trainable what the method trains; the head is trained by all."""
    model = task.model()
    if method == "full":
        return model
    model.requires_grad_(False)
    if method == "adapters":
        adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=task.width), seed=0)
    elif method == "lora":
        model = with_lora(model, task)
    for name, parameter in model.named_parameters():
        if any(f".{part}." in f".{name}" for part in task.head):
            parameter.requires_grad_(True)
    return model


def with_lora(model: nn.Module, task: Task) -> nn.Module:
    """Add LoRA of the rank that has as many parameters as the adapters would have."""
    from peft import LoraConfig, inject_adapter_in_model

    other = task.model()
    adapterx.attach(other, adapterx.AdapterConfig(bottleneck_dim=task.width), seed=0)
    wanted = sum(parameter.numel() for _, parameter in adapterx.adapter_parameters(other))
    matrices = [
        m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rpartition(".")[2] in task.query_and_value
    ]
    rank = round(wanted / sum(matrix.in_features + matrix.out_features for matrix in matrices))
    return inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(task.query_and_value)), model
    )


def train(model: nn.Module, task: Task, rate: float, seed: int) -> float:
    """Train; return the seconds it took."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=rate, weight_decay=0.01)
    steps = math.ceil(len(task.train) / task.batch_size) * task.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, steps // 10), (steps - step) / max(1, steps - steps // 10))
    )
    draw, start = random.Random(seed), time.perf_counter()
    model.train()
    for _ in range(task.epochs):
        order = draw.sample(task.train, len(task.train))
        for batch in batches(order, task.batch_size, task.collate):
            loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return time.perf_counter() - start


def measure(name: str, task: Task, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model by one method and score it before and after."""
    torch.manual_seed(seed)
    model = prepared(task, method)
    with torch.inference_mode():
        before = task.score(model.eval(), task.test)
    seconds = train(model, task, options.learning_rate or task.rates[method], seed)
    with torch.inference_mode():
        value = task.score(model.eval(), task.test)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "benchmark": "tasks",
        "task": name,
        "method": method,
        "metric": task.metric,
        "value": f"{value:.5f}",
        "before": f"{before:.5f}",
        "seed": seed,
        "split": options.split,
        "train_examples": len(task.train),
        "test_examples": len(task.test),
        "epochs": task.epochs,
        "learning_rate": options.learning_rate or task.rates[method],
        "trainable_parameters": trained,
        "trainable_fraction": f"{trained / total:.5f}",
        "train_seconds": f"{seconds:.1f}",
        **environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--train", type=int, help="examples to train on (default: the task's)")
    parser.add_argument("--test", type=int, help="examples to score (default: all)")
    parser.add_argument("--learning-rate", type=float, help="instead of the method's, with --split dev")
    parser.add_argument("--recipes", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    task, path = TASKS[options.task](options), RESULTS / "tasks.csv"
    for seed in options.seeds:
        for method in options.methods:
            row = measure(options.task, task, method, seed, options)
            print(json.dumps(row), flush=True)
            if options.split == "test":
                append_rows(path, [row], COLUMNS)


if __name__ == "__main__":
    main()
