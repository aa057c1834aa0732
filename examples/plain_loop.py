"""Train adapters with a training loop of your own: no Trainer, no command line.

    python examples/plain_loop.py --model MODEL_FOLDER_OR_HUB_NAME --data train.csv --output runs/plain_loop

The CSV has the columns text and label.
"""

import argparse
import csv
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import adapterx
from adapterx import SequenceClassifier
from adapterx.training import check_finite_loss, parameter_groups, seed_everything


def read_examples(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Return the texts, their class ids and the class names."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    return [row["text"] for row in rows], [names.index(row["label"]) for row in rows], names


def main() -> None:
    """Attach, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    seed_everything(0)
    texts, labels, names = read_examples(options.data)

    # 1. A base model, a head on top of it, adapters inside it. Attaching freezes the base model.
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = SequenceClassifier(AutoModel.from_pretrained(options.model), num_labels=len(names), pooling="mean")
    print(adapterx.attach(model.base_model, adapterx.AdapterConfig(bottleneck_dim=64, init="he"), "sentiment", seed=0))
    print(adapterx.summary(model))

    # 2. An optimizer over what is trainable; the fresh head may learn faster than the adapters.
    groups = parameter_groups(model, learning_rate=1e-3, head_learning_rate=5e-3, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)

    # 3. An ordinary loop.
    model.train()
    step = 0
    for epoch in range(options.epochs):
        losses = []
        for batch in torch.randperm(len(texts)).split(options.batch_size):
            inputs = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor([labels[i] for i in batch]))["loss"]
            check_finite_loss(loss, step=step, epoch=epoch, learning_rate=groups[0]["lr"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
        print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.4f}")

    # 4. The adapter is a small file, and so is the head.
    adapterx.save_adapter(model.base_model, options.output, "sentiment")
    adapterx.save_head(model, options.output)


if __name__ == "__main__":
    main()
