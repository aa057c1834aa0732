"""Command lines as strangers type them: what each says or prints, and how it exits. A table, so that it can grow.

`{name}` stands for what `prepare` makes: `{run}` a complete run, `{model}` its base, `{data}` labelled data, `{file}` a
file, `{folder}` a folder, `{absent}` nothing, `{new}` at most an empty folder. Where the exit code is 2, the command
says one line, which holds the text.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

TRAIN = "train --model {model} --data {data} --output {new} "
EVALUATE = "evaluate {run} --data {data} "


class Line(NamedTuple):
    """A command line, words parted by spaces (`\\s` is a space in a word, `\\e` an empty word)."""

    typed: str
    said: str
    code: int = 2

    def words(self, places):
        return [word.format(**places).replace("\\s", " ").replace("\\e", "") for word in self.typed.split(" ") if word]


MISUSED = [
    Line("--foo", "no such option: --foo"),
    Line("--foo[/bar]", "--foo[/bar]"),
    Line("[/x]", "no such command '[/x]'"),
    Line("trian", "no such command 'trian'"),
    Line("\x1b[31m", "\\x1b[31m"),
    Line("train", "missing option '--model'"),
    Line("train --model {model}", "missing option '--data'"),
    Line("train --model {model} --data {data}", "missing option '--output'"),
    Line("predict", "missing argument"),
    Line("evaluate", "missing argument"),
    Line("evaluate {run}", "missing option '--data'"),
    Line("export", "missing argument"),
    Line("evaluate {run} --data", "option '--data' requires an argument"),
    Line("info a b", "unexpected extra argument"),
    Line("export {run} --opset 1.5", "invalid value for '--opset'"),
    Line("export {run} --opsat 20", "no such option: --opsat"),
    Line("predict {run} x --format [/b]", "format must be one of text, jsonl, csv, got '[/b]'"),
    Line("export {run} --format \\e", "form must not be empty"),
    Line("export {run} --format pt", "format must be one of torchscript, onnx, onnx-portable, got 'pt'"),
    Line(TRAIN + "--epochs x[/b]", "invalid value for '--epochs'"),
    Line(TRAIN + "--down-bias maybe", "unexpected extra argument"),
    Line(TRAIN + "extra", "unexpected extra argument"),
]
VALUES = [
    Line(TRAIN + f"--{name} {value}", said)
    for name, value, said in [
        ("epochs", "0", "epochs must be at least 1 and below 2^31, got 0"),
        ("epochs", "-1", "epochs must be at least 1"),
        ("epochs", "99999999999999999999999999", "epochs must"),
        ("batch-size", "0", "batch_size must be at least 1"),
        ("threads", "0", "threads must"),
        ("threads", "-3", "threads must"),
        ("threads", "99999", "threads must"),
        ("seed", "-1", "seed must lie between"),
        ("seed", "4294967296", "seed must lie between"),
        ("seed", "nan", "invalid value for '--seed'"),
        ("learning-rate", "nan", "learning_rate must be a number above 0"),
        ("learning-rate", "inf", "learning_rate must be a number above 0"),
        ("learning-rate", "1e400", "learning_rate must be a number above 0"),
        ("learning-rate", "0", "learning_rate must be a number above 0"),
        ("head-learning-rate", "nan", "head_learning_rate must"),
        ("weight-decay", "nan", "weight_decay must"),
        ("warmup-ratio", "nan", "warmup_ratio must"),
        ("warmup-ratio", "1", "warmup_ratio must"),
        ("head-dropout", "nan", "head_dropout must"),
        ("head-dropout", "1", "head_dropout must"),
        ("eval-fraction", "nan", "eval_fraction must"),
        ("eval-fraction", "-0.1", "eval_fraction must"),
        ("examples-per-class", "0", "examples_per_class must"),
        ("examples-per-class", "9999", "at least 9999 examples"),
        ("dropout", "nan", "dropout must"),
        ("dropout", "2", "dropout must"),
        ("scaling", "nan", "scaling must"),
        ("scaling", "inf", "scaling must"),
        ("scaling", "[/b]", "scaling must"),
        ("reduction-factor", "nan", "reduction_factor must"),
        ("reduction-factor", "0", "reduction_factor must"),
        ("bottleneck-dim", "0", "bottleneck_dim must"),
        ("bottleneck-dim", "99999999999", "bottleneck_dim must"),
        ("activation", "[/b]", "activation must"),
        ("placement", "nowhere", "placement must"),
        ("positions", "head", "positions must"),
        ("init", "[/x]", "init must"),
        ("init-up", "one", "init_up must"),
        ("added-to", "[/b] --bottleneck-dim 4", "added_to"),
        ("layers", "0-99999999999", "layers must be block numbers from 0 to 9999"),
        ("layers", "99999999999", "layers must"),
        ("layers", "5-2", "layers must"),
        ("layers", "-1", "layers must"),
        ("layers", "1-", "layers must"),
        ("layers", "0,,1", "layers must"),
        ("layers", "٣", "layers must"),
        ("layers", "1_0", "layers must"),
        ("layers", "7", "7"),
        ("layers", "\\e", "layers must not be empty"),
        ("target-modules", "no[/b]", "no[/b]"),
        ("target-regex", "((", "target_modules"),
        ("modules-to-save", "no[/b] --bottleneck-dim 4", "no[/b]"),
        ("method", "[/b]", "method must be one of"),
        ("pooling", "max", "pooling must be one of"),
        ("precision", "fp8", "precision must be one of"),
        ("device", "tpu", "device must be one of"),
        ("max-length", "2", "max_length must lie between 3 and 24"),
        ("max-length", "25", "max_length must lie between 3 and 24"),
        ("max-length", "-1", "max_length must"),
        ("text-column", "[/b]", "no column '[/b]'"),
        ("label-column", "text", "must differ"),
        ("text-column", "\\e", "text_column must not be empty"),
        ("eval-data", "\\e", "eval_data must not be empty"),
        ("eval-data", "{absent}.csv", "does not exist"),
        ("method", "head --activation relu", "--activation can only"),
        ("keep-best", "--eval-fraction 0", "keep_best needs"),
        ("resume", "--overwrite", "exclude each other"),
        ("resume", "", "nothing to resume"),
    ]
]
OUTPUTS = [
    Line(EVALUATE + "--output {folder}", "output must be a file"),
    Line(EVALUATE + "--output {file}/x", "output must lie below folders"),
    Line(EVALUATE + "--output {file}/x/y", "output must lie below folders"),
    Line(EVALUATE + "--output=", "a path must not be empty"),
    Line(EVALUATE + "--output {link_to_folder}", "output must be a file"),
    Line(EVALUATE + "--output {link_to_itself}", "Too many levels of symbolic links"),
    Line(EVALUATE + "--output {folder}/" + "n" * 300, "File name too long"),
    Line(EVALUATE + "--output /dev/full", "/dev/full: No space left on device"),
    Line(EVALUATE + "--output {full}", "No space left on device"),
    Line(EVALUATE + "--output {folder}/new/deep/x.json", "accuracy", 0),
    Line(EVALUATE + "--output /dev/null", "accuracy", 0),
    Line(EVALUATE + "--output {link}", "accuracy", 0),
    Line("predict {run} good --output {folder}", "output must be a file"),
    Line("predict {run} good --output {file}/x", "output must lie below folders"),
    Line("predict {run} good --output=", "a path must not be empty"),
    Line("predict {run} good --output /dev/full", "/dev/full: No space left on device"),
    Line("predict {run} good --output /dev/null", "", 0),
    Line("export {run} --output {file}", "output must be a folder"),
    Line("export {run} --output {file}/x", "output must lie below folders"),
    Line("export {run} --output /dev/null", "output must be a folder"),
    Line("export {run} --output=", "a path must not be empty"),
    Line("train --model {model} --data {data} --output {file}", "must be a folder"),
    Line("train --model {model} --data {data} --output {file}/x", "not"),
    Line("train --model {model} --data {data} --output /dev/null", "must be a folder"),
    Line("train --model {model} --data {data} --output=", "a path must not be empty"),
    Line("train --model {model} --data {data} --output {folder}", "is not empty"),
    Line("train --model {model} --data {data} --output {run}", "is not empty"),
]
BASES = [
    Line(f"train --data {{data}} --output {{new}} --model {model}", said)
    for model, said in [
        ("\\e", "model must not be empty"),
        ("{absent}", "no such folder exists"),
        ("{folder}", "has no config.json"),
        ("{file}", "no such folder exists"),
        ("./nosuch", "no such folder exists"),
        ("a/b/c", "no such folder exists"),
        ("~/nosuch/x", "no such folder exists"),
        ("nosuch", "the hub cannot be reached"),
        ("nosuch/[/b]", "no such folder exists"),
        ("/dev/null", "no such folder exists"),
        ("n" * 5000, "..."),
        ("{run}", "holds an adapter"),
        ("{no_tokenizer}", "vocabulary of its tokenizer"),
        ("{larger_tokenizer}", "the model has embeddings for 29 tokens"),
        ("{cut}", "model.safetensors is damaged or cut short"),
        ("{no_shard}", "lacks model-00002-of-00002.safetensors"),
        ("{bad_index}", "must hold a weight_map"),
        ("{list_config}", "config.json must hold a JSON object, got list"),
        ("{empty_config}", "config.json is not valid JSON"),
        ("{no_type}", "must name a model_type"),
        ("{unknown_type}", "does not recognize"),
        ("{remote_code}", "code of its own"),
        ("{bad_tokenizer}", "cannot load the tokenizer"),
        ("{list_tokenizer_config}", "tokenizer_config.json must hold a JSON object"),
        ("{pipe_config}", "config.json must be a regular file"),
        ("{latin}", "not valid JSON"),
        ("{strange_length}", "must have a number for model_max_length"),
        ("{not_utf8}", "the path of the model folder must be UTF-8"),
        ("\udcff", "no such folder exists: \\udcff"),
    ]
]
RUNS = [
    Line("predict {absent} good", "does not exist"),
    Line("predict {folder} good", "is no run folder"),
    Line("predict {file} good", ""),
    Line("predict \\e good", "a path must not be empty"),
    Line("predict {run}", "give texts"),
    Line("predict {run} good --file {data}", "exactly one"),
    Line("predict {run} good --model \\e", "model must not be empty"),
    Line("predict {run} good --model {no_tokenizer}", "vocabulary of its tokenizer"),
    Line("predict {run} good --model nosuch", "the hub cannot be reached"),
    Line("predict {run} --file {absent}.csv", "does not exist"),
    Line("predict {run} --file {absent}.txt", "does not exist"),
    Line("predict {run} --file {folder}", "is a folder"),
    Line("evaluate {run} --data {absent}.csv", "does not exist"),
    Line("evaluate {run} --data \\e", "data must not be empty"),
    Line("evaluate {run} --data {folder}", "is a folder"),
    Line("evaluate {run} --data {data} --label-column [/b]", "no column '[/b]'"),
    Line("evaluate {absent} --data {data}", "does not exist"),
    Line("export {absent}", "does not exist"),
    Line("export {run} --model {cut} --output {new}", "cut short"),
    Line("info {file}", "no such folder exists"),
    Line("info {folder}", "has no config.json"),
    Line("info a:b", "no such folder exists"),
    Line("info [/b]", "no such folder exists: [/b]"),
    Line("info \udcff", "no such folder exists: \\udcff"),
    Line("\udcff", "no such command"),
    Line("predict \udcff good", "\\udcff does not exist"),
    Line("predict {run} --file \udcff.csv", "\\udcff.csv"),
    Line("evaluate {run} --data \udcff.csv", "\\udcff.csv"),
    Line("evaluate {run} --data {not_utf8_data} --json", "not_utf8", 0),
    Line("evaluate {run} --data {not_utf8_data}", "not_utf8", 0),
    Line("evaluate {run} --data {data} --output {folder}/\udcff.json", "accuracy", 0),
    Line("evaluate {run} --data {data} --text-column \udcff", "no column"),
    Line("export {run} --output {folder}/\udcff", "must be UTF-8"),
    Line("export {run} --format \udcff", "format must be one of"),
    Line("info :smile:", "no such folder exists: :smile:"),
    Line("info \\e", "target must not be empty"),
    Line("info nosuch", "the hub cannot be reached"),
    Line("info " + "n" * 300, "File name too long"),
    Line("info", "operator library", 0),
    Line("info {run}", "negative, positive", 0),
    Line("info {model}", "adapter", 0),
    Line("info {markup}", "[neg]", 0),
    Line("evaluate {markup} --data {markup_data}", "[/neg]", 0),
    Line("evaluate {markup} --data {markup_data} --json", '"[/neg]"', 0),
    Line("predict {markup} good [/x] [bold]", "[bold]", 0),
    Line("predict {run} good --format jsonl", '"probability"', 0),
    Line("--help", "Usage", 0),
    Line("train --help", "--bottleneck-dim", 0),
    Line("train -h", "--bottleneck-dim", 0),
    Line("-h", "Usage", 0),
    Line("--version", "adapterx 0.", 0),
    Line("predict {run} good --quiet --format jsonl", '"probability"', 0),
    Line("evaluate {run} --data {data} -q --json", '"accuracy"', 0),
    Line("train --resume {absent}", "nothing to resume"),
    Line("train --resume {run}", "is complete"),
    Line("train --resume={file}", "must be a folder"),
    Line("train --resume= --model {model}", "resume must not be empty"),
    Line("train --resume {folder} --output {new}", "must name the same folder"),
]
LINES = MISUSED + VALUES + OUTPUTS + BASES + RUNS


def copied(model: Path, folder: Path, **changes) -> str:
    """Copy a base folder with some files changed; None deletes one. Dots in names are written `__`."""
    shutil.copytree(model, folder)
    for name, content in changes.items():
        path = folder / name.replace("__", ".")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder)


def prepare(place: Path, model: Path, run: Path, data: Path) -> dict[str, str]:
    """Make what the table names; return where it is."""
    (place / "folder").mkdir()
    (place / "folder/old").write_bytes(b"old")
    (place / "file").write_bytes(b"file")
    (place / "target").write_bytes(b"old")
    for name, target in (("link", "target"), ("link_to_folder", "folder"), ("link_to_itself", "link_to_itself")):
        (place / name).symlink_to(target)
    (place / "full").symlink_to("/dev/full")
    config = json.loads((model / "config.json").read_bytes())
    tokenizer = json.loads((model / "tokenizer_config.json").read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}

    def base(name, **changes):
        return copied(model, place / name, **changes)

    places = {"model": model, "run": run, "data": data, "new": place / "new", "absent": place / "absent"}
    places |= {name: place / name for name in ("folder", "file", "link", "link_to_folder", "link_to_itself", "full")}
    places |= {
        "no_tokenizer": base("no_tokenizer", tokenizer__json=None, tokenizer_config__json=None),
        "larger_tokenizer": _smaller_table(base("larger_tokenizer"), config | {"vocab_size": 29}),
        "cut": base("cut", model__safetensors=weights[: len(weights) // 2]),
        "no_shard": base("no_shard", model__safetensors=None, **{"model__safetensors__index__json": index}),
        "bad_index": base("bad_index", model__safetensors=None, **{"model__safetensors__index__json": {}}),
        "list_config": base("list_config", config__json=[]),
        "empty_config": base("empty_config", config__json=b""),
        "no_type": base("no_type", config__json={}),
        "unknown_type": base("unknown_type", config__json=config | {"model_type": "[/b]"}),
        "remote_code": base(
            "remote_code", config__json=config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
        ),
        "bad_tokenizer": base("bad_tokenizer", tokenizer__json=b"{"),
        "list_tokenizer_config": base("list_tokenizer_config", tokenizer_config__json=[]),
        "pipe_config": base("pipe_config", config__json=None),
        "not_utf8": base("not_utf8\udcff"),
        "strange_length": base("strange_length", tokenizer_config__json=tokenizer | {"model_max_length": {"a": 1}}),
        "latin": base("latin", config__json=b'{"model_type": "\xe9"}'),
    }
    (place / "no_shard/model-00001-of-00002.safetensors").write_bytes(weights)
    places["not_utf8_data"] = shutil.copy(data, place / "not_utf8\udcff.csv")
    os.mkfifo(place / "pipe_config/config.json")
    return {name: str(path) for name, path in places.items()}


def _smaller_table(folder: str, config: dict) -> str:
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name][: config["vocab_size"]].clone()
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    Path(folder, "config.json").write_text(json.dumps(config))
    return folder
