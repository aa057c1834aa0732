"""What the Python blocks of the documentation find when they run: tiny random models in place of those of a hub."""

import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_training
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/api/*.md", "docs/tutorials/*.md", "export/*.md")
    for path in ROOT.glob(pattern)
)
_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One block of Python, where it begins, and why it is not run (None: it is)."""

    line: int
    code: str
    reason: str | None


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    text = read(page)
    return [
        Block(text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"])
        for match in _BLOCK.finditer(text)
    ]


def runs(page):
    """Tell whether a page has a block of Python that is run."""
    return any(not block.reason for block in blocks(page))


def fenced(page):
    """Return every block of a page: the line where it begins, its language, its lines."""
    found, inside = [], None
    for number, line in enumerate(read(page).splitlines(), start=1):
        if not line.startswith("```"):
            if inside is not None:
                inside[2].append(line)
        elif inside is None:
            inside = (number + 1, line[3:].strip(), [])
        else:
            found.append(inside)
            inside = None
    return found


def commands(page):
    """Return the calls of `adapterx` in the blocks for a shell: the line, and the words behind the program."""
    found = []
    for begin, language, lines in fenced(page):
        if language in ("", "sh", "bash", "console"):
            for written in "\n".join(lines).replace("\\\n", "  ").splitlines():
                found += [(begin, words) for words in _calls(written)]
    return found


def _calls(written):
    """Yield the words of each call in a line of a shell; one with `...` leaves out what was said before."""
    if "adapterx" not in written or "..." in written:
        return
    call = []
    for word in [*shlex.split(written.lstrip("$ "), comments=True), "|"]:
        if word not in ("|", "&&", ";"):
            call.append(word)
            continue
        for program in (["adapterx"], ["-m", "adapterx.cli"]):
            for i in range(len(call)):
                if call[i : i + len(program)] == program:
                    yield call[i + len(program) :]
        call = []


def prepare(page, monkeypatch):
    """Return the names that a page's blocks use and do not define."""
    import transformers

    config = tiny_training.tiny_config()
    config.vocab_size, config.hidden_size = 1100, 64  # enough for the ids and the bottlenecks that pages name
    for auto, build in (
        ("AutoModel", transformers.BertModel),
        ("AutoModelForSequenceClassification", transformers.BertForSequenceClassification),
    ):
        monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", lambda *_, build=build, **__: build(config))
    return _PREPARE[page](monkeypatch) if page in _PREPARE else {}


def _mixed(_monkeypatch):
    import transformers

    import adapterx

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=60, pad_token_id=0, **sizes))
    for name in ("language", "sentiment", "topic"):
        adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4), name)
    ids = torch.randint(1, 60, (4, 5))
    batch, names = {"input_ids": ids, "labels": ids}, ["sentiment", None, "topic", "sentiment"]
    found = {"prompts": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "batches": [(batch, names)]}
    return {"torch": torch, "adapterx": adapterx, "model": model, "batch": batch, "names": names, **found}


def _training(monkeypatch):
    import transformers
    from transformers import AutoTokenizer

    from adapterx.training import check_finite_loss, parameter_groups

    on_cpu = partial(transformers.TrainingArguments, use_cpu=True, report_to=[])  # which knows bfloat16 too
    monkeypatch.setattr(transformers, "TrainingArguments", on_cpu)
    tiny_training.save_tiny_tokenizer(Path("tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    rows = [(text, int(label == "positive")) for text, label in tiny_training.sentences(8)]
    dataset = [{**tokenizer(text), "labels": label} for text, label in rows]
    encoded = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    batches = [{**encoded, "labels": torch.tensor([label for _, label in rows])}]
    found = {"check_finite_loss": check_finite_loss, "parameter_groups": parameter_groups, "step": 0, "epoch": 0}
    return {"torch": torch, "dataset": dataset, "tokenizer": tokenizer, "name": "tiny", "batches": batches, **found}


def _tasks(monkeypatch):
    import tiny_language
    import transformers

    saved = {"AutoModelForCausalLM": tiny_language.save_tiny_llama, "AutoModelForSeq2SeqLM": tiny_language.save_tiny_t5}
    for auto, save in saved.items():
        model = getattr(transformers, auto).from_pretrained(save(Path(auto)))
        monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", lambda *_, model=model: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: tiny_language.tokenizer_with())
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "max_steps": 2, "disable_tqdm": True}
    return {"arguments": transformers.TrainingArguments("trainer", **quiet)}


def _adapted():
    from transformers import AutoModelForSequenceClassification

    import adapterx

    model = AutoModelForSequenceClassification.from_pretrained("tiny")
    adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4))
    return model.eval()


def _exported(_monkeypatch):
    from adapterx import ops
    from adapterx.export import to_onnx, to_torchscript

    model = _adapted()
    to_torchscript(model, "model.pt", validate=False)
    to_onnx(model, ".", validate=False)
    os.symlink(ops.LIBRARY, "libadapterx.so")
    return {}


def _model_class(_monkeypatch):
    from transformers import AutoModelForSequenceClassification

    return {"AutoModelForSequenceClassification": AutoModelForSequenceClassification}


def _downloaded(_monkeypatch):
    """Put what AdapterHub might have saved where the pages look for it."""
    from transformers import AutoModel

    import adapterx
    from adapterx.integrations import adapterhub

    model = AutoModel.from_pretrained("tiny")
    adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4), "sst-2")
    adapterhub.save_adapter(model, "downloads/sst-2")
    head = adapterx.ClassificationHead(64, 2, pooling="cls", dense=True)
    adapterhub.save_head(head, "downloads/sst-2", "sst-2", "bert")
    adapterx.detach(model)
    return {"model": model}


def _saved(_monkeypatch):
    import adapterx

    adapterx.save_adapter(_adapted(), "adapters/sentiment")
    return {}


def _distributed(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "TrainingArguments", partial(transformers.TrainingArguments, use_cpu=True))
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**torchrun, "ACCELERATE_USE_FSDP": "false"}.items():  # which TrainingArguments change
        monkeypatch.setenv(name, value)
    return {}


def run_tutorial(page):
    """Run the blocks of a tutorial in their order, those for a shell too, in the working folder."""
    import tutorial_models
    from command_line import invoke

    tutorial_models.save_models(Path.cwd())
    names = {}
    for begin, language, lines in fenced(page):
        code = "\n".join(lines) + "\n"
        if language == "python":
            exec(compile("\n" * (begin - 1) + code, str(ROOT / page), "exec"), names)
        elif language == "":
            for written in code.replace("\\\n", "  ").splitlines():
                calls = list(_calls(written))
                assert calls, f"{page}:{begin}: only calls of adapterx are run, got {written!r}"
                for words in calls:
                    invoke(*words)


def _peft(_monkeypatch):
    pytest.importorskip("peft", minversion="0.21")
    return {}


_PREPARE = {
    "docs/adapterhub.md": _downloaded,
    "docs/adapters.md": _model_class,
    "docs/distributed.md": _distributed,
    "docs/export.md": lambda _monkeypatch: {"model": _adapted()},
    "docs/hub.md": _saved,
    "docs/mixed.md": _mixed,
    "docs/moving.md": _downloaded,
    "docs/peft.md": _peft,
    "docs/tasks.md": _tasks,
    "docs/training.md": _training,
    "export/README.md": _exported,
}
