"""`--task seq2seq-lm`: pairs of texts, generation in evaluation, scores against sacrebleu."""

import json
import sys

import pytest

pytest.importorskip("transformers")

import torch
from command_line import invoke, refused
from tiny_language import questions, save_tiny_t5, tokenizer_with
from tiny_training import write_jsonl

from adapterx.cli.tasks.seq2seq_lm import Seq2SeqLM, text_scores
from adapterx.cli.tasks.task import Asked, Encoder
from adapterx.errors import DataError

TASK = ("--task", "seq2seq-lm")
PAIRS = questions(60)
ROWS = [{"source": asked, "target": said, "id": i} for i, (asked, said) in enumerate(PAIRS)]
S2S = Seq2SeqLM()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def run(t5, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seq2seq")
    data = write_jsonl(folder / "train.jsonl", ROWS)
    shape = ("--bottleneck-dim", "16", "--batch-size", "8", "--epochs", "3", "--learning-rate", "0.01", "--keep-best")
    invoke(
        "train", "--model", t5, "--data", data, "--output", folder / "run", *TASK, *shape, "--max-target-length", "12"
    )
    return folder / "run"


def read(path, text=None, label=None):
    return S2S.read(str(path), Asked(text, label, (None, None), {}), default_split="train")


def test_the_loss_falls_and_texts_are_scored(run, tmp_path):
    pytest.importorskip("sacrebleu")
    metrics = json.loads((run / "metrics.json").read_text())
    losses = [entry["eval_loss"] for entry in metrics["history"] if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert metrics["loss"] == pytest.approx(min(losses), rel=1e-3)
    assert {"exact_match", "bleu", "chrf"} <= {name for name, value in metrics.items() if value is not None}
    assert any("eval_chrf" in entry for entry in metrics["history"])
    record = json.loads((run / "run.json").read_text())
    assert (record["options"]["max_target_length"], record["options"]["num_beams"]) == (12, 1)
    data = write_jsonl(tmp_path / "test.jsonl", ROWS[:20])
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    told = [json.loads(line) for line in invoke("predict", run, "--file", data).stdout.splitlines()]
    generated = [each["generated_text"] for each in told]
    assert [each["id"] for each in told] == [*range(20)]
    assert {k: scores[k] for k in ("exact_match", "bleu", "chrf")} == text_scores(
        generated, [r["target"] for r in ROWS[:20]]
    )


def test_figures_are_those_of_the_model_row_by_row(run):
    from adapterx.cli.runs import load_run
    from adapterx.cli.tasks.batches import encoder_of

    loaded = load_run(run)
    examples = S2S.read(str(run.parent / "train.jsonl"), Asked.again(loaded.record), default_split="test").take(
        [*range(9)]
    )
    total = count = 0
    generated = []
    with torch.inference_mode():
        for row in S2S.encode(examples, loaded.record, encoder_of(loaded)):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            total += loaded.model(input_ids=ids, labels=labels).loss.item() * labels.numel()
            count += labels.numel()
            found = loaded.model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, num_beams=1)
            generated += loaded.tokenizer.batch_decode(found, skip_special_tokens=True)
    scores = S2S.evaluate(loaded, examples)
    assert scores["loss"] == pytest.approx(total / count, rel=1e-4)
    assert [
        each["generated_text"]
        for each in S2S.predict(loaded, S2S.wanted(examples.texts, None, Asked.again(loaded.record)))
    ] == generated


def test_the_trainer_generates_what_predict_does(run, t5, tmp_path):
    """AdapterSeq2SeqTrainer hands generated ids to `compute_metrics`."""
    from quick_arguments import quick_arguments
    from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

    import adapterx
    from adapterx.integrations.transformers import AdapterSeq2SeqTrainer

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(t5), tokenizer_with()
    adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4, init_up="near_zero"), "a", seed=0)
    rows = [{**tokenizer(asked), "labels": tokenizer(text_target=said)["input_ids"]} for asked, said in PAIRS[:6]]
    quiet = {name: getattr(quick_arguments(tmp_path), name) for name in ("disable_tqdm", "report_to", "use_cpu")}
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, generation_max_length=9, max_steps=2, save_steps=2, **quiet
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = AdapterSeq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    found = trainer.predict(rows).predictions
    assert found.dtype.kind == "i"
    assert trainer.gather_function == trainer.accelerator.gather_for_metrics  # on two processes no example counts twice
    alone = model.generate(input_ids=torch.tensor([rows[0]["input_ids"]]), max_length=9, do_sample=False)[0].tolist()
    assert found[0].tolist()[: len(alone)] == alone
    assert "adapter_model.safetensors" in {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "model.safetensors" not in {path.name for path in (tmp_path / "checkpoint-2").iterdir()}


@pytest.mark.parametrize(
    ("row", "columns", "pair"),
    [
        ({"source": "a", "target": "b"}, (None, None), ("source", "target")),
        ({"article": "a", "highlights": "b", "id": 3}, (None, None), ("article", "highlights")),
        ({"text": "a", "Summary": "b"}, (None, None), ("text", "Summary")),
        ({"x": "a", "y": "b"}, ("x", "y"), ("x", "y")),
        ({"pair": {"en": "a", "de": "b"}}, ("pair.en", "pair.de"), ("pair.en", "pair.de")),
    ],
)  # fmt: skip
def test_columns_that_are_found(row, columns, pair, tmp_path):
    found = read(write_jsonl(tmp_path / "a.jsonl", [row]), *columns)
    assert (found.texts, found.labels) == (["a"], ["b"])
    assert (found.text_column, found.label_column) == pair


def test_what_is_refused(run, t5, tmp_path):
    with pytest.raises(DataError, match="column 'target' has no value in line 1"):
        read(write_jsonl(tmp_path / "a.jsonl", [{"source": "a", "target": " "}]))
    with pytest.raises(DataError, match="must differ"):
        read(write_jsonl(tmp_path / "b.jsonl", [{"x": "a"}]), "x", "x")
    assert "cannot be exported" in refused("export", run, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    line = refused(
        "train", "--model", t5, "--data", tmp_path / "a.jsonl", "--output", tmp_path / "o", "--num-beams", "2"
    )
    assert "--num-beams can only be used with --task seq2seq-lm" in line


def test_a_tokenizer_that_wants_to_be_told_languages(t5, monkeypatch):
    from adapterx.cli.tasks import seq2seq_lm
    from adapterx.errors import CheckpointError

    class Multilingual:
        set_src_lang_special_tokens = None

    monkeypatch.setattr(seq2seq_lm, "load_language_model", lambda *_: (Multilingual(), None))
    with pytest.raises(CheckpointError, match="must be a model for one pair of languages, Multilingual wants"):
        S2S.load("nllb")


def test_prefix_and_limits_reach_the_rows():
    from adapterx.cli.data.examples import Examples

    tokenizer = tokenizer_with()
    settings = {"source_prefix": "say: ", "max_target_length": 3}
    [row] = S2S.encode(
        Examples(["the cat"], ["the cat says meow."], "a", "b"), {}, Encoder(tokenizer, 64, 400, settings)
    )
    assert tokenizer.decode(row["input_ids"]) == "say: the cat"
    assert (len(row["labels"]), row["cut"]) == (3, True)


def test_scores_without_sacrebleu_say_what_is_missing(monkeypatch, capsys):
    from adapterx.cli.tasks import seq2seq_lm

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    seq2seq_lm._sacrebleu.cache_clear()
    try:
        for _ in range(2):
            assert text_scores(["a ", "b"], ["a", "c"]) == {"exact_match": 0.5}
    finally:
        seq2seq_lm._sacrebleu.cache_clear()
    assert capsys.readouterr().err.count("pip install 'adapterx[text]'") == 1
