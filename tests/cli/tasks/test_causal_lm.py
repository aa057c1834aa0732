"""`--task causal-lm`: texts in blocks, conversations of every form, perplexity, generation."""

import csv
import json
import math
from importlib.metadata import version

import pytest

pytest.importorskip("transformers")

import torch
from command_line import invoke, refused
from tiny_language import CHATML, questions, save_tiny_llama, tokenizer_with
from tiny_training import write_jsonl

from adapterx.cli.tasks.causal_lm import CausalLM, packed
from adapterx.cli.tasks.task import Asked, Encoder
from adapterx.errors import DataError

TASK = ("--task", "causal-lm")
SHAPE = ("--bottleneck-dim", "32", "--batch-size", "8", "--epochs", "6", "--learning-rate", "0.01")
PAIRS = questions(80)
LM = CausalLM()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), CHATML, steps=40)


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    """A run that has learnt to answer."""
    folder = tmp_path_factory.mktemp("chat")
    data = write_jsonl(folder / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    invoke("train", "--model", llama, "--data", data, "--output", folder / "run", *TASK, *SHAPE, "--keep-best")
    return folder / "run"


def read(path, text=None, label=None):
    return LM.read(str(path), Asked(text, label, (None, None), {}), default_split="train")


def test_it_learns_to_answer(run, tmp_path):
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    assert metrics["perplexity"] < 3
    assert metrics["loss"] == pytest.approx(math.log(metrics["perplexity"]))
    assert (record["form"], record["chat_template"]) == ("conversations", None)
    assert (record["text_column"], record["label_column"]) == ("prompt", "completion")
    assert "head_config.json" not in record["files"]
    assert "perplexity" in invoke("info", run).stdout
    data = write_jsonl(tmp_path / "test.jsonl", [{"prompt": p, "completion": c} for p, c in questions(20, seed=9)])
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    assert scores["perplexity"] < 3 < scores["base_perplexity"]


def test_figures_are_those_of_the_model_row_by_row(run):
    from adapterx.cli.runs import load_run
    from adapterx.cli.tasks.batches import encoder_of

    loaded = load_run(run)
    examples = LM.read(str(run.parent / "train.jsonl"), Asked.again(loaded.record), default_split="test").take(
        [*range(9)]
    )
    rows = LM.encode(examples, loaded.record, encoder_of(loaded))
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            tensors = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask", "labels")}
            learnt = (tensors["labels"][:, 1:] != -100).sum().item()
            total += loaded.model(**tensors).loss.item() * learnt
            count += learnt
    scores = LM.evaluate(loaded, examples)
    assert scores["tokens"] == count
    assert scores["loss"] == pytest.approx(total / count, rel=1e-4)


def test_predict_goes_on_until_the_turn_ends(run, tmp_path):
    answer = json.loads(invoke("predict", run, "what does the cow say?").stdout)
    assert answer == {"text": "what does the cow say?", "generated_text": answer["generated_text"]}
    assert answer["generated_text"].startswith("the ")
    assert "<|im_end|>" not in answer["generated_text"]
    assert len(answer["generated_text"]) < 40  # it ended by itself
    rows = [{"id": i, "prompt": p, "completion": c} for i, (p, c) in enumerate(PAIRS[:5])]
    table = write_jsonl(tmp_path / "a.jsonl", rows)
    told = [json.loads(line) for line in invoke("predict", run, "--file", table).stdout.splitlines()]
    alone = [json.loads(invoke("predict", run, row["prompt"]).stdout)["generated_text"] for row in rows[:2]]
    assert [each["generated_text"] for each in told[:2]] == alone  # whatever the padding
    assert [each["id"] for each in told] == [0, 1, 2, 3, 4]
    shown = list(csv.DictReader(invoke("predict", run, "--file", table, "--format", "csv").stdout.splitlines()))
    assert [row["generated_text"] for row in shown] == [each["generated_text"] for each in told]
    short = json.loads(invoke("predict", run, "what does the cow say?", "--max-new-tokens", "2").stdout)
    assert answer["generated_text"].startswith(short["generated_text"])


def test_what_is_drawn_follows_the_seed(run):
    def drawn(*more):
        arguments = ("predict", run, "hm", "--temperature", "3", "--max-new-tokens", "12", *more)
        return json.loads(invoke(*arguments).stdout)["generated_text"]

    assert drawn("--seed", "1") == drawn("--seed", "1")
    assert drawn("--seed", "1") != drawn("--seed", "2")
    assert (
        drawn("--top-k", "1")
        == json.loads(invoke("predict", run, "hm", "--max-new-tokens", "12").stdout)["generated_text"]
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--max-new-tokens", "0"), "max_new_tokens must lie between 1"),
        (("--temperature", "-1"), "temperature must be a number from 0 up"),
        (("--top-p", "0.5"), "top_p needs a temperature above 0"),
        (("--temperature", "1", "--num-beams", "2"), "exclude each other"),
        (("--max-new-tokens", "128"), "must fit the model's 128 positions"),
    ],
)
def test_generation_that_is_refused(run, options, match):
    assert match in refused("predict", run, "a", *options)


def test_other_tasks_generate_nothing(trained):
    assert "--num-beams can only be used with runs that generate" in refused(
        "predict", trained, "good", "--num-beams", "2"
    )


# -- data

TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]},
        {"messages": json.dumps(TURNS)},
        {"prompt": "a b", "completion": "c"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"instruction": "a b", "input": "", "output": "c"},
        {"instruction": "a b", "output": "c", "text": "left alone"},
        {"Question": "a b", "answer": "c"},
    ],
)
def test_every_form_of_a_conversation(row, tmp_path):
    assert read(write_jsonl(tmp_path / "a.jsonl", [row])).texts == [TURNS]


def test_second_columns_and_system_prompts(tmp_path):
    row = {"instruction": "add", "input": "1 2", "output": "3", "system": "be brief"}
    [messages] = read(write_jsonl(tmp_path / "a.jsonl", [row])).texts
    assert messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "add\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    found = read(write_jsonl(tmp_path / "b.jsonl", [{"q": "a b", "r": "c"}]), "q", "r")
    assert (found.texts, found.text_column, found.label_column) == ([TURNS], "q", "r")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": TURNS[:1]}, "line 1 must hold an answer"),
        ({"messages": [{"role": "user"}]}, "must hold messages with the texts role and content"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "must name roles out of .* got 'narrator'"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [1]}]}, "text alone"),
        ({"prompt": "a", "completion": ""}, "column 'completion' has no value in line 1"),
        ({"prompt": 3, "completion": "a"}, "must hold text, got 3"),
        ({"x": "a"}, "has no column that looks like a text"),
    ],
)  # fmt: skip
def test_what_is_refused(row, match, tmp_path):
    with pytest.raises(DataError, match=match):
        read(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_texts_are_packed_and_nothing_is_left_out():
    tokenizer = tokenizer_with()
    texts = ["the cat says meow.", "moo", "what does the duck say? " * 5]
    encoder = Encoder(tokenizer, 16, 400, {})
    rows = packed(texts, encoder)
    stream = [token for row in rows for token in row["input_ids"]]
    assert tokenizer.decode(stream) == "".join(f"{text}</s>" for text in texts)
    assert all(row["labels"] == row["input_ids"] for row in rows)
    assert {len(row["input_ids"]) for row in rows[:-1]} == {16}
    assert len(rows[-1]["input_ids"]) <= 16


def test_plain_texts_of_a_file(llama, tmp_path):
    lines = [answer for _, answer in PAIRS]
    (tmp_path / "train.txt").write_text("\n\n".join(lines) + "\n")
    shape = (*TASK, *SHAPE[:4], "--epochs", "1", "--max-length", "32")
    invoke("train", "--model", llama, "--data", tmp_path / "train.txt", "--output", tmp_path / "o", *shape)
    record = json.loads((tmp_path / "o/run.json").read_text())
    assert (record["form"], record["text_column"]) == ("texts", "paragraphs")
    (tmp_path / "new.txt").write_text("the cat\nthe dog\n")
    told = [
        json.loads(line)
        for line in invoke("predict", tmp_path / "o", "--file", tmp_path / "new.txt").stdout.splitlines()
    ]
    assert [each["text"] for each in told] == ["the cat", "the dog"]
    data = write_jsonl(tmp_path / "a.jsonl", [{"messages": TURNS}])
    assert "must hold texts, as in the training" in refused("evaluate", tmp_path / "o", "--data", data)


def test_answers_beyond_the_limit(llama, tmp_path):
    rows = [{"prompt": p, "completion": c} for p, c in PAIRS[:12]] + [{"prompt": "word " * 60, "completion": "c"}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    shape = (*TASK, *SHAPE[:4], "--epochs", "1", "--max-length", "40", "--eval-fraction", "0")
    shown = " ".join(
        invoke("train", "--model", llama, "--data", data, "--output", tmp_path / "o", *shape).stdout.split()
    )
    assert (
        "1 of 13 conversations exceed 40 tokens; what lies beyond is not read, and 1 whose answers lie beyond" in shown
    )
    line = refused("train", "--model", llama, "--data", data, "--output", tmp_path / "p", *shape, "--max-length", "4")
    assert "must hold something to learn within 4 tokens" in line


def test_a_tokenizer_without_template_gets_the_plain_one(tmp_path):
    model = save_tiny_llama(tmp_path / "base")
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS[:12]])
    arguments = ("--model", model, "--data", data, "--output", tmp_path / "o", *TASK, *SHAPE[:4], "--epochs", "1")
    invoke("train", *arguments)
    assert "### Assistant:" in json.loads((tmp_path / "o/run.json").read_text())["chat_template"]
    assert "generated_text" in json.loads(invoke("predict", tmp_path / "o", "a", "--max-new-tokens", "3").stdout)


def test_full_training_saves_the_whole_model(llama, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": answer} for _, answer in PAIRS[:20]])
    shape = (*TASK, "--method", "full", "--epochs", "1", "--max-length", "32")
    invoke("train", "--model", llama, "--data", data, "--output", tmp_path / "o", *shape)
    assert (tmp_path / "o/model.safetensors").is_file()
    assert "perplexity" in json.loads(invoke("evaluate", tmp_path / "o", "--data", data, "--json").stdout)


def test_refusals_of_the_command(llama, model, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a b c"}, {"text": "d e"}])
    arguments = ("--data", data, "--output", tmp_path / "o", *TASK)
    assert "--pooling can only be used with" in refused("train", "--model", llama, *arguments, "--pooling", "cls")
    assert "method must be one of adapters, full" in refused("train", "--model", llama, *arguments, "--method", "head")
    assert "weights of" in refused("train", "--model", model, *arguments)  # a BERT without its head


@pytest.mark.skipif(version("transformers").startswith("4."), reason="PyTorch cannot trace Llama of transformers 4")
def test_export(run, tmp_path):
    invoke("export", run, "--format", "torchscript", "--output", tmp_path / "out")
    program = torch.jit.load(tmp_path / "out/model.pt")
    from adapterx.cli.runs import load_run

    ids = torch.arange(5, 12).view(1, 7)
    logits = program(ids, torch.ones_like(ids))
    logits = logits if isinstance(logits, torch.Tensor) else logits[0]
    torch.testing.assert_close(logits, load_run(run).model(ids).logits, rtol=1e-4, atol=1e-4)
