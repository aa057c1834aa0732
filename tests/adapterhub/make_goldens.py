"""Write what AdapterHub's `adapters` computes, and check files that adapterx wrote: runs beside `adapters` only.

    python make_goldens.py write FOLDER       one archive a model: base, inputs, adapters, fusions, outputs
    python make_goldens.py compare FOLDER     do it again, and compare with the archives that are there
    python make_goldens.py load FOLDER        load the adapters in FOLDER, which adapterx wrote, and compare outputs

All weights are drawn by name, so that no order of initialisation matters, and rounded, so that they take little room.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
import tarfile
import tempfile
import warnings
import zlib
from pathlib import Path

import adapters
import cases
import torch
import transformers
from adapters import composition
from adapters.configuration import ADAPTER_CONFIG_MAP, AdapterPlusConfig
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
PRESETS = ADAPTER_CONFIG_MAP | {"adapter_plus": AdapterPlusConfig(stochastic_depth=0.0)}  # more needs torchvision


def drawn(name: str, tensor: torch.Tensor, spread: float) -> torch.Tensor:
    """Return multiples of 1/64 that depend on the name and the shape alone, so that they pack well."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(tensor.shape, generator=generator) * spread
    if tensor.dim() == 1 and name.endswith("weight"):
        values = 1.0 + values  # of a norm
    return ((values * 64).round() / 64).to(tensor.dtype)


def fill(tensors: dict[str, torch.Tensor], spread: float) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(drawn(name, tensor, spread))


def base_model(model_type: str, class_name: str | None = None) -> torch.nn.Module:
    """Return a model with drawn weights, without adapters."""
    own, config_class, values = cases.MODELS[model_type]
    config = getattr(transformers, config_class)(**values)
    config._attn_implementation = "eager"
    model = getattr(transformers, class_name or own)._from_config(config, attn_implementation="eager").float().eval()
    fill({name: p for name, p in model.named_parameters()}, 0.25)
    model.tie_weights()
    return model


def inputs_of(model_type: str) -> dict[str, torch.Tensor]:
    """Return three examples; the last of the texts is padded."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 39, (3, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    if model_type in ("gpt2", "llama"):
        ids[2, 4:] = 0  # what their heads take for padding
    pixels = torch.randn(3, 3, 8, 8, generator=generator)
    if model_type == "vit":
        return {"pixel_values": pixels}
    if model_type == "clip":
        ids[:, -1] = 39
        return {"input_ids": ids, "attention_mask": torch.ones_like(mask), "pixel_values": pixels}
    found = {"input_ids": ids, "attention_mask": mask}
    if model_type in ("bart", "t5"):
        found["decoder_input_ids"] = torch.randint(3, 39, (3, 6), generator=generator)
    return found


def output_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the last hidden states or the logits; of CLIP those of both towers, one after the other."""
    with torch.no_grad():
        out = model(**inputs)
    if hasattr(out, "text_model_output"):
        towers = (out.text_model_output, out.vision_model_output)
        return torch.cat([tower.last_hidden_state.flatten() for tower in towers])
    return out[0] if not hasattr(out, "logits") else out.logits


def headed_model(model_type: str, class_name: str) -> torch.nn.Module:
    """Return a model with a head, or a place for one, on the base model with drawn weights, `adapters` inside."""
    config = base_model(model_type).config
    own = getattr(adapters, class_name, None)
    model = own(config) if own else getattr(transformers, class_name)(config)
    model.base_model.load_state_dict(base_model(model_type).state_dict(), strict=False)
    if own is None:
        initialise(model)
    return model.eval()


def initialise(model: torch.nn.Module) -> None:
    """Let `adapters` into a model, and undo what it does to ModernBERT: each Wqkv gets a random bias, never saved."""
    own = {name for name, _ in model.named_parameters()}
    adapters.init(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in own:
                parameter.zero_()


def adapted(model_type: str, added: dict[str, object], class_name: str | None = None) -> torch.nn.Module:
    """Return a model with these adapters, by name, with drawn weights."""
    model = base_model(model_type, class_name)
    initialise(model)
    for name, config in added.items():
        model.add_adapter(name, config=config)
    fill_adapters(model)
    return model.eval()


def fill_adapters(model: torch.nn.Module) -> None:
    marks = ("adapters.", "shared_parameters.", "adapter_fusion_layer.")
    fill({name: p for name, p in model.named_parameters() if any(mark in name for mark in marks)}, 0.3)


def config_of(preset: str, changes: dict) -> object:
    small = cases.SMALL if "reduction_factor" not in changes else {}
    return PRESETS[preset].replace(**small, **changes)


def run_case(model_type: str, case: tuple[str, dict], folder: Path, class_name: str | None = None) -> torch.Tensor:
    model = adapted(model_type, {"a": config_of(*case)}, class_name)
    model.set_active_adapters("a")
    model.save_adapter(str(folder), "a", with_head=False)
    keep_shared(model, folder / "pytorch_adapter.bin")
    return output_of(model, inputs_of(model_type))


def keep_shared(model: torch.nn.Module, path: Path) -> None:
    """Add what `adapters` leaves out of a file that it saves from a base model without a head: the rules of PHM."""
    tensors = torch.load(path)
    shared = {name: p for name, p in model.state_dict().items() if name.startswith("shared_parameters.")}
    if shared and not any("shared_parameters." in key for key in tensors):
        torch.save(tensors | shared, path)


def run_head(model_type: str, head: tuple[str, dict | None], folder: Path) -> torch.Tensor:
    model = headed_model(model_type, head[0])
    model.add_adapter("a", config=config_of("seq_bn", {}))
    if head[1] is not None:
        options = dict(head[1])
        tagging = options.pop("tagging", False)
        (model.add_tagging_head if tagging else model.add_classification_head)("a", **options)
    heads = {name: p for name, p in model.named_parameters() if "head" in name or name.startswith("classifier")}
    fill({name: p for name, p in heads.items() if "score" not in name}, 0.3)
    fill_adapters(model)
    model.set_active_adapters("a")
    model.save_adapter(str(folder), "a")
    return output_of(model.eval(), inputs_of(model_type))


def run_language_model(model_type: str, how: tuple[str, str, str], folder: Path) -> torch.Tensor:
    class_name, add_head, preset = how
    ours = base_model(model_type, cases.WITH_HEADS[model_type][0])
    model = getattr(adapters, class_name)(ours.config)
    model.base_model.load_state_dict(ours.base_model.state_dict(), strict=False)
    model.add_adapter("a", config=config_of(preset, {}))
    getattr(model, add_head)("a", **({"layers": 1} if "causal" in add_head else {}))
    inside = {id(p) for p in ours.base_model.parameters()}
    own = [m for m in ours.modules() if isinstance(m, (torch.nn.Linear, torch.nn.LayerNorm))]
    own = [m for m in own if id(m.weight) not in inside or m is ours.get_output_embeddings()]
    heads = [m for m in model.heads["a"].modules() if isinstance(m, (torch.nn.Linear, torch.nn.LayerNorm))]
    for theirs, layer in zip(heads, own, strict=True):
        theirs.load_state_dict(layer.state_dict(), strict=False)
        if layer.bias is None:
            torch.nn.init.zeros_(theirs.bias)
    fill_adapters(model)
    model.set_active_adapters("a")
    model.save_adapter(str(folder), "a", with_head=False)
    return output_of(model.eval(), inputs_of(model_type))


def run_composition(
    model_type: str, preset: str, how: tuple, folder: Path, fusion: dict | str = "dynamic"
) -> torch.Tensor:
    folder.mkdir()
    kind, parts, options = how
    model = adapted(model_type, {name: config_of(preset, {}) for name in parts})
    options = dict(options)
    if kind == "Split" and model_type == "vit":
        options["splits"] = [2, 3]
    config = options.pop("config", fusion)
    if kind == "Fuse":
        if isinstance(config, dict):
            config = adapters.DynamicAdapterFusionConfig(**config)
        model.add_adapter_fusion(parts, config)
        fill_adapters(model)
        model.save_adapter_fusion(str(folder / "fusion"), parts)
    setup = getattr(composition, kind)(*parts, **options)
    model.set_active_adapters(setup)
    for name in parts:
        model.save_adapter(str(folder / name), name, with_head=False)
    model.eval()
    return output_of(model, inputs_of(model_type))


def attempt(record: dict, outputs: dict, name: str, function, *arguments) -> None:
    """Run a case; note its result, or the error that `adapters` itself ends in."""
    folder = arguments[-1] if isinstance(arguments[-1], Path) else arguments[2]
    try:
        outputs[name] = function(*arguments).contiguous()
        if not torch.isfinite(outputs[name]).all():
            raise ArithmeticError("the output is not finite")
    except Exception as error:  # noqa: BLE001 - whatever `adapters` raises is what is recorded
        outputs.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)
        record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def generate(model_type: str, folder: Path) -> None:
    """Write everything about one model into a folder."""
    model = base_model(model_type)
    model.half().save_pretrained(folder / "base")
    inputs = inputs_of(model_type)
    save_file(inputs, folder / "inputs.safetensors")
    records, outputs = {}, {"base": output_of(base_model(model_type), inputs).contiguous()}
    for name, case in cases.adapter_cases(model_type).items():
        records[name] = {"kind": "adapter", "preset": case[0], "changes": case[1], "folder": slug(name)}
        attempt(records[name], outputs, name, run_case, model_type, case, folder / slug(name))
    if model_type in cases.WITH_HEADS:
        class_name, preset = cases.WITH_HEADS[model_type]
        base_model(model_type, class_name).half().save_pretrained(folder / "with_head")
        name = f"{class_name}, {preset}"
        records[name] = {
            "kind": "with_head", "preset": preset, "changes": {}, "folder": slug(name), "class": class_name
        }  # fmt: skip
        attempt(records[name], outputs, name, run_case, model_type, (preset, {}), folder / slug(name), class_name)
    if model_type in cases.LANGUAGE_MODELS:
        how = cases.LANGUAGE_MODELS[model_type]
        name, class_name = f"{how[0]}, {how[2]}", cases.WITH_HEADS[model_type][0]
        records[name] = {"kind": "language_model", "preset": how[2], "folder": slug(name), "class": class_name}
        attempt(records[name], outputs, name, run_language_model, model_type, how, folder / slug(name))
    for name, head in cases.HEADS.get(model_type, {}).items():
        name = f"head: {name}"
        records[name] = {"kind": "head", "preset": "seq_bn", "head": head, "folder": slug(name)}
        attempt(records[name], outputs, name, run_head, model_type, head, folder / slug(name))
    generate_compositions(model_type, folder, records, outputs)
    save_file(outputs, folder / "outputs.safetensors")
    (folder / "cases.json").write_text(json.dumps(records, indent=1))


def generate_compositions(model_type: str, folder: Path, records: dict, outputs: dict) -> None:
    for preset in cases.COMPOSED.get(model_type, ()):
        runs = {f"{name}, {preset}": how for name, how in cases.COMPOSITIONS.items()}
        if model_type == "bert":
            runs |= {
                f"Fuse {name}, {preset}": ("Fuse", ["a", "b"], {"config": config})
                for name, config in cases.FUSIONS.items()
            }
        for name, how in runs.items():
            records[name] = {"kind": "composition", "preset": preset, "how": how, "folder": slug(name)}
            attempt(records[name], outputs, name, run_composition, model_type, preset, how, folder / slug(name))


def pack(folder: Path, archive: Path) -> None:
    """Write a folder as one archive whose bytes depend on the content alone."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix, path.as_posix())):
            if path.is_file() and path.name != "generation_config.json":
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size = path.stat().st_size
                packed.addfile(info, io.BytesIO(path.read_bytes()))


def write(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for model_type in cases.MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            generate(model_type, Path(temporary))
            pack(Path(temporary), target / f"{model_type}.tar.xz")
            records = json.loads(Path(temporary, "cases.json").read_text())
        failed = [name for name, record in records.items() if "error" in record]
        print(f"{model_type}: {len(records)} cases, {len(failed)} of which adapters cannot do: {'; '.join(failed)}")


def compare(target: Path) -> int:
    """Generate again, and return how many outputs differ from those in the archives."""
    different = 0
    for model_type in cases.MODELS:
        with tempfile.TemporaryDirectory() as temporary, tarfile.open(target / f"{model_type}.tar.xz") as packed:
            generate(model_type, Path(temporary, "new"))
            if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10 and 3.11
                packed.extraction_filter = tarfile.data_filter
            packed.extractall(Path(temporary, "old"))
            old, new = (load_file(Path(temporary, which, "outputs.safetensors")) for which in ("old", "new"))
        differences = {name: float((old[name] - new[name]).abs().max()) for name in old.keys() & new.keys()}
        wrong = [name for name in old.keys() | new.keys() if differences.get(name, 1.0) > TOLERANCE]
        different += len(wrong)
        print(f"{model_type}: {len(old)} outputs, largest difference {max(differences.values()):.1e}", *wrong)
    return different


def load(folder: Path) -> int:
    """Load every adapter below a folder with `adapters` and compare; return how many fail.

    `index.json` holds for each: model type, class, folder, fusion or None, composition, file format, output.
    """
    failures, rows = 0, []
    for entry in json.loads((folder / "index.json").read_text()):
        try:
            difference = load_one(folder, entry)
        except Exception as error:  # noqa: BLE001 - whatever `adapters` raises is a failure
            difference, problem = float("inf"), f"{type(error).__name__}: {error}"
            print(f"FAILED {entry['model']} {entry['case']}: {problem}")
        if not difference <= TOLERANCE:
            failures += 1
            print(f"DIFFERS {entry['model']} {entry['case']} {entry['format']}: {difference:.1e}")
        rows.append({**entry, "difference": difference})
    (folder / "loaded.json").write_text(json.dumps(rows))
    print(f"{len(rows)} folders of adapterx loaded by adapters {adapters.__version__}, {failures} failed")
    return failures


def load_one(folder: Path, entry: dict) -> float:
    model = (
        headed_model(entry["model"], entry["class"])
        if entry.get("head")
        else base_model(entry["model"], entry["class"])
    )
    if not entry.get("head"):
        initialise(model)
    for name, place in entry["adapters"].items():
        info: dict = {}
        model.load_adapter(
            str(folder / place), load_as=name, set_active=True, with_head=bool(entry.get("head")), loading_info=info,
            use_safetensors=entry["format"] == "safetensors",
        )  # fmt: skip
        if info.get("missing_keys") or [key for key in info.get("unexpected_keys", []) if "adapter" in key]:
            raise ValueError(f"keys do not fit: {info}")
    if entry["fusion"]:
        model.load_adapter_fusion(
            str(folder / entry["fusion"]), set_active=True, use_safetensors=entry["format"] == "safetensors"
        )
    if entry["how"]:
        kind, parts, options = entry["how"]
        options = {key: value for key, value in options.items() if key != "config"}
        model.set_active_adapters(getattr(composition, kind)(*parts, **options))
    expected = load_file(folder / entry["output"])["output"]
    return float((output_of(model.eval(), inputs_of(entry["model"])) - expected).abs().max())


def main() -> int:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    action, folder = sys.argv[1], Path(sys.argv[2])
    hidden = io.StringIO()
    with contextlib.redirect_stderr(hidden):
        return {"write": write, "compare": compare, "load": load}[action](folder) or 0


if __name__ == "__main__":
    sys.exit(main())
