"""`--task token-classification`: files of words and tags, pieces and words, entities, and what is not read."""

import csv
import json
import random

import pytest
import tiny_training
from command_line import invoke, refused
from tiny_training import write_jsonl

from adapterx import TokenClassificationHead, TokenClassifier, load_head, restore_head, save_head
from adapterx.cli.runs import load_run
from adapterx.cli.tasks import task_of
from adapterx.cli.tasks.task import Asked, Encoder
from adapterx.cli.tasks.token_classification import TokenClassification
from adapterx.cli.tasks.words import Words, encode_words
from adapterx.errors import CheckpointError, DataError

TASK = ("--task", "token-classification")
SHAPE = ("--bottleneck-dim", "32", "--batch-size", "4", "--epochs", "8", "--learning-rate", "0.005")
SHAPE += ("--head-learning-rate", "0.01")
PEOPLE, FAMILY, PLACES = ("good", "great"), "fine", ("bad", "poor", "awful")  # a tiny model tells tags by the word


def examples(count=120, seed=0):
    """Texts with people of one or two words, and places of one, which may consist of pieces."""
    draw, rows = random.Random(seed), []
    for i in range(count):
        words, tags = [], []
        for _ in range(draw.randint(3, 6)):
            kind = draw.choice(["PER", "LOC", None, None])
            if kind == "PER":
                named = [draw.choice(PEOPLE), FAMILY][: draw.randint(1, 2)]
                words += named
                tags += ["B-PER", "I-PER"][: len(named)]
            else:
                words.append(
                    draw.choice(PLACES) + "-word1" if kind else draw.choice([*tiny_training.WORDS, *",.()" * 2])
                )
                tags.append("B-LOC" if kind else "O")
        rows.append({"id": i, "tokens": words, "ner_tags": tags})
    return rows


ROWS = examples()
TASKS = TokenClassification()


def write_conll(path, rows):
    texts = ["".join(f"{w} X X {t}\n" for w, t in zip(r["tokens"], r["ner_tags"], strict=True)) for r in rows]
    path.write_text("-DOCSTART- X X O\n\n" + "\n".join(texts))
    return path


def read(path, text=None, label=None):
    return TASKS.read(str(path), Asked(text, label, (None, None), {}), default_split="train")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    data = write_jsonl(folder / "train.jsonl", ROWS)
    invoke("train", "--model", model, "--data", data, "--output", folder / "run", *TASK, *SHAPE, "--keep-best")
    return folder / "run"


def test_it_learns_entities(run):
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    assert metrics["f1"] > 0.9
    assert metrics["accuracy"] > metrics["majority_baseline"] + 0.2
    assert record["labels"] == ["O", "B-LOC", "B-PER", "I-PER"]
    assert record["scheme"] == "IOB2"
    assert "IOB2" in invoke("info", run).stdout


def test_predictions_span_the_characters_of_plain_texts(run):
    text = "word1,  good fine (poor-word1)."
    answer = json.loads(invoke("predict", run, text).stdout)
    assert answer["text"] == text
    assert answer["words"] == ["word1", ",", "good", "fine", "(", "poor-word1", ")", "."]
    assert answer["tags"] == ["O", "O", "B-PER", "I-PER", "O", "B-LOC", "O", "O"]
    found = [(e["type"], e["text"], text[e["start"] : e["end"]]) for e in answer["entities"]]
    assert found == [("PER", "good fine", "good fine"), ("LOC", "poor-word1", "poor-word1")]
    assert all(0.3 < e["score"] <= 1 for e in answer["entities"])
    shown = invoke("predict", run, text, "--format", "text").stdout
    assert shown == "word1 , good/B-PER fine/I-PER ( poor-word1/B-LOC ) .\n"


def test_evaluate_agrees_with_seqeval_on_what_predict_says(run, tmp_path):
    metrics = pytest.importorskip("seqeval.metrics")
    rows = examples(30, seed=5)
    data = write_jsonl(tmp_path / "new.jsonl", rows)
    answers = [json.loads(line) for line in invoke("predict", run, "--file", data).stdout.splitlines()]
    assert [answer["words"] for answer in answers] == [row["tokens"] for row in rows]
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    truth, guessed = [row["ner_tags"] for row in rows], [answer["tags"] for answer in answers]
    assert scores["f1"] == pytest.approx(metrics.f1_score(truth, guessed))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guessed))
    assert set(scores["entities"]) == {"PER", "LOC"}
    assert "entities" in invoke("evaluate", run, "--data", data).stdout
    table = list(csv.DictReader(invoke("predict", run, "--file", data, "--format", "csv").stdout.splitlines()))
    assert [json.loads(row["tags"]) for row in table] == guessed
    conll = write_conll(tmp_path / "new.conll", rows)
    told = invoke("predict", run, "--file", conll, "--text-column", "1").stdout.splitlines()
    assert [json.loads(line)["tags"] for line in told] == guessed


def test_words_beyond_the_limit_are_scored_as_outside(run, tmp_path):
    row = {"tokens": ["word1"] * 30 + ["good"], "ner_tags": ["O"] * 30 + ["B-PER"]}
    data = write_jsonl(tmp_path / "long.jsonl", [row, {"tokens": ["good"], "ner_tags": ["B-PER"]}])
    scores = json.loads(invoke("evaluate", run, "--data", data, "--json").stdout)
    assert (scores["words"], scores["words_not_read"]) == (32, 9)  # 24 tokens, two of them marks
    assert scores["recall"] == 0.5
    tags = [json.loads(line)["tags"] for line in invoke("predict", run, "--file", data).stdout.splitlines()]
    assert (tags[0][22:], tags[1]) == (["O"] * 9, ["B-PER"])
    assert scores["accuracy"] == pytest.approx((tags[0][:30].count("O") + 1) / 32)


def test_training_says_what_is_not_read(model, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [*ROWS[:20], {"tokens": ["word1"] * 30, "ner_tags": ["O"] * 30}])
    more = ("--epochs", "1", "--bottleneck-dim", "4", "--eval-fraction", "0")
    shown = invoke("train", "--model", model, "--data", data, "--output", tmp_path / "o", *TASK, *more).stdout
    assert "8 words in 1 of 21 texts are not read" in " ".join(shown.split())


def test_tags_without_entities_are_scored_by_tag(model, tmp_path):
    rows = [{"words": row["tokens"], "upos": [{"O": "X"}.get(t, "NOUN") for t in row["ner_tags"]]} for row in ROWS]
    data = write_jsonl(tmp_path / "pos.jsonl", rows)
    invoke(
        "train", "--model", model, "--data", data, "--output", tmp_path / "o", "--task", "pos", *SHAPE, "--keep-best"
    )
    metrics, record = (json.loads((tmp_path / "o" / name).read_text()) for name in ("metrics.json", "run.json"))
    assert record["scheme"] is None
    assert metrics["f1"] is None
    assert metrics["accuracy"] > metrics["majority_baseline"]
    answer = json.loads(invoke("predict", tmp_path / "o", "good word1").stdout)
    assert (answer["tags"], answer["entities"]) == (["NOUN", "X"], [])


def test_every_way_to_write_words_and_tags_gives_the_same_examples(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = ROWS[:12]
    expected = [row["tokens"] for row in rows], [row["ner_tags"] for row in rows]
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    features = {"tokens": [datasets.Value("string")], "ner_tags": [datasets.ClassLabel(names=names)]}
    numbered = [{"tokens": r["tokens"], "ner_tags": [names.index(t) for t in r["ner_tags"]]} for r in rows]
    stored = datasets.Dataset.from_list(numbered, features=datasets.Features(features))
    stored.to_parquet(tmp_path / "a.parquet")
    stored.save_to_disk(tmp_path / "saved")
    write_jsonl(tmp_path / "lists.jsonl", rows)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tokens", "ner_tags"])
        table.writerows([" ".join(row["tokens"]), " ".join(row["ner_tags"])] for row in rows)
    write_conll(tmp_path / "a.conll", rows)
    tabs = "\n".join("".join(f"{w}\t{t}\n" for w, t in zip(*pair, strict=True)) for pair in zip(*expected, strict=True))
    (tmp_path / "a.txt").write_text("# about\n" + tabs)
    for name in ("lists.jsonl", "texts.csv", "a.parquet", "saved", "a.conll", "a.txt"):
        found = read(tmp_path / name)
        assert (found.texts, found.labels) == expected, name


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "must have a tag for each word, got 2 words and 1 tags"),
        ("a.jsonl", '{"tokens": ["a", 3], "tags": ["O", "O"]}', "must hold words, got 3"),
        ("a.jsonl", '{"tokens": ["a", " "], "tags": ["O", "O"]}', "must hold words, got ' '"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', "must hold a tag for each word"),
        ("a.jsonl", '{"tokens": [], "tags": []}', "has no value in line 1"),
        ("a.jsonl", '{"tokens": ["a"], "x": ["O"]}', "has no column that looks like a label"),
        ("a.conll", "a X O\nb O\n", "line 2 must have 3 fields, as the lines before, got 2"),
        ("a.conll", "-DOCSTART- O\n\n", "holds no words"),
    ],
)
def test_what_is_refused(tmp_path, name, content, match):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=match):
        read(tmp_path / name)


def test_refusals_of_the_command(run, model, tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["good"], "ner_tags": ["B-ORG"]}])
    assert "do not occur in training: 'B-ORG'" in refused("evaluate", run, "--data", data)
    arguments = ("train", "--model", model, "--data", data, "--output", tmp_path / "o", *TASK)
    assert "--pooling can only be used with --task sequence-" in refused(*arguments, "--pooling", "cls")


# -- pieces


def tokenizer_of(kind):
    """Return a tokenizer that parts words in its own way."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"special_tokens": ["[UNK]", "[PAD]"]}
    built, trainer = {
        "wordpiece": lambda: (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=90, **special)),
        "bytes": lambda: (models.BPE(), trainers.BpeTrainer(vocab_size=320, **special)),
        "metaspace": lambda: (models.Unigram(), trainers.UnigramTrainer(vocab_size=90, unk_token="[UNK]", **special)),
    }[kind]()
    tokenizer = Tokenizer(built)
    tokenizer.pre_tokenizer = {
        "wordpiece": pre_tokenizers.BertPreTokenizer,
        "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=False),
        "metaspace": pre_tokenizers.Metaspace,
    }[kind]()
    corpus = [" ".join(row["tokens"]) for row in ROWS] + ["naïve café 東京 don't U.S."]
    tokenizer.train_from_iterator(corpus, trainer)
    prefix = {"add_prefix_space": True} if kind == "bytes" else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", **prefix)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "metaspace"])
def test_first_pieces_are_those_that_the_tokenizer_itself_finds(kind):
    tokenizer = tokenizer_of(kind)
    texts = [row["tokens"] for row in ROWS[:20]] + [["naïve", "café", "東京", "don't", "U.S.", "word1,word2"]]
    for words in texts:
        [(row, first)] = encode_words(tokenizer, [Words.of_list(words)], 500)
        theirs = tokenizer(words, is_split_into_words=True)
        assert row["input_ids"] == theirs["input_ids"]
        owners = theirs.word_ids()
        assert first == [owners.index(word) for word in range(len(words))]


def test_the_first_piece_carries_the_label_and_the_rest_none(model):
    from transformers import AutoTokenizer

    from adapterx.cli.data.examples import Examples

    tokenizer = AutoTokenizer.from_pretrained(model)
    example = Examples([["good", "bad-word1", "word2"]], [["B-PER", "B-LOC", "O"]], "tokens", "tags")
    known = {"labels": ["O", "B-LOC", "B-PER"], "scheme": "IOB2"}
    [row] = TASKS.encode(example, known, Encoder(tokenizer, 24, 30, {}))
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["[CLS]", "good", "bad", "[UNK]", "word1", "word2", "[SEP]"]
    assert row["labels"] == [-100, 2, 1, -100, -100, 0, -100]
    assert (row["tags"], row["read"]) == ([2, 1, 0], [0, 1, 2])


# -- files


def test_exported_models_tag_alike(run, tmp_path):
    invoke("export", run, "--format", "torchscript", "--output", tmp_path / "out")  # compared at several shapes
    assert json.loads((tmp_path / "out/labels.json").read_text()) == ["O", "B-LOC", "B-PER", "I-PER"]


def test_a_saved_head_is_told_from_others(run, tmp_path):
    import torch

    head = load_head(run)
    assert isinstance(head, TokenClassificationHead)
    classifier = TokenClassifier(torch.nn.Linear(2, 2), 4, hidden_size=head.hidden_size)
    restore_head(classifier, run)
    torch.testing.assert_close(classifier.head.linear.weight, head.linear.weight)
    from adapterx import SequenceClassifier

    other = SequenceClassifier(torch.nn.Linear(2, 2), 4, hidden_size=head.hidden_size)
    with pytest.raises(CheckpointError, match="type 'TokenClassificationHead' instead of 'ClassificationHead'"):
        restore_head(other, run)
    save_head(classifier, tmp_path)
    document = json.loads((tmp_path / "head_config.json").read_text())
    (tmp_path / "head_config.json").write_text(json.dumps({k: v for k, v in document.items() if k != "type"}))
    with pytest.raises(CheckpointError):
        load_head(tmp_path)


def test_the_head_of_another_run_is_refused(run, trained, tmp_path):
    import torch

    base = torch.nn.Linear(2, 2)
    base.config = load_run(run).model.base_model.config
    record = json.loads((run / "run.json").read_text())
    assert TASKS.restore(base, run, record).head.num_labels == 4
    for task, folder, known in (
        (TASKS, trained, record),
        (task_of({}), run, record),
        (TASKS, run, record | {"labels": ["O"]}),
        (task_of({"task": "regression"}), trained, json.loads((trained / "run.json").read_text())),
    ):
        with pytest.raises(CheckpointError, match=r"the head in .* must be a \w+Head of \d outputs .* it is a "):
            task.restore(base, folder, known)


def test_tags_by_another_name_mark_entities(model, tmp_path):
    numbers = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3}
    rows = [row | {"ner_tags": [numbers[tag] for tag in row["ner_tags"]]} for row in ROWS[:30]]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    given = ("train", "--model", model, "--data", data, *TASK, "--bottleneck-dim", "4", "--epochs", "1")
    (tmp_path / "names.json").write_text(json.dumps({str(number): tag for tag, number in numbers.items()}))
    order = ("--labels", "B-PER,I-PER,O,B-LOC,I-LOC")
    invoke(*given, "--output", tmp_path / "run", "--label-map", tmp_path / "names.json", *order)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["labels"] == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]
    assert record["scheme"] == "IOB2"
    scores = json.loads(invoke("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    assert set(scores["entities"]) == {"PER", "LOC"}
    line = refused(*given, "--output", tmp_path / "o", "--labels", "0,1,2")
    assert "has 1 label(s) that --labels does not list: '3'" in line
