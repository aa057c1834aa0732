"""The model card: what was trained on what, its figures, and how to load it, from the documents that were written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterx.errors import speaking_as
from adapterx.integrations.hub.contents import METRICS, Contents, read_contents, with_base
from adapterx.integrations.hub.service import library

MARK = "<!-- Written by adapterx from the files beside it. Remove this line to keep your own text at the next push. -->"
_PIPELINES = {  # by the task of a run, the word by which the hub finds models
    "sequence-classification": "text-classification",
    "multi-label-classification": "text-classification",
    "regression": "text-classification",
    "token-classification": "token-classification",
    "causal-lm": "text-generation",
    "seq2seq-lm": "text-generation",
}
_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "f1": "f1", "perplexity": "perplexity", "mse": "mse"}
_FORMAT = ("format_version", "document_sha256")


@speaking_as("model_card")
def model_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    language: str | None = None,
) -> str:
    """Return the `README.md` that `push_to_hub` writes, to be read or changed first.

    Args:
        folder: what `save_adapter`, `save_fusion` or `adapterx train` wrote.
        repo_id: name of the repository, for the lines that load it.
        base_model: as in `push_to_hub`.
        license: as in `push_to_hub`.
        dataset: as in `push_to_hub`.
        language: as in `push_to_hub`.

    Returns:
        Markdown with metadata in front.

    Raises:
        CheckpointError: the folder is damaged, or holds nothing of ours.
        ConfigError: the base model of a run is a folder of this machine.
        ExtensionError: huggingface_hub is not installed.
    """
    contents = with_base(read_contents(folder), base_model)
    return model_card_of(contents, repo_id=repo_id, license=license, dataset=dataset, language=language)


def model_card_of(
    contents: Contents, *, repo_id: str | None, license: str | None, dataset: str | None, language: str | None
) -> str:
    """Return the card of contents that were read; arguments as in `model_card`."""
    base = base_of(contents)
    data = library().ModelCardData(
        base_model=base,
        library_name="adapterx",
        license=license,
        language=language,
        datasets=dataset,
        metrics=sorted({_METRICS[name] for name in _numbers(contents) if name in _METRICS}) or None,
        pipeline_tag=_pipeline(contents),
        tags=["adapterx", "bottleneck-adapter"],
        base_model_relation="adapter" if base else None,
    )
    body = "\n\n".join(_sections(contents, base, repo_id or "owner/name", license))
    return f"---\n{data.to_yaml()}\n---\n{MARK}\n\n{body}\n"


def base_of(contents: Contents) -> str | None:
    """Return the name of the base model that the documents record."""
    if contents.record:
        return contents.record.get("base_model")
    described = [document.get("base_model") for document in contents.documents.values()]
    names = [each.get("name") for each in described if isinstance(each, dict)]
    return next((name for name in names if isinstance(name, str)), None)


def _pipeline(contents: Contents) -> str | None:
    return _PIPELINES.get(contents.record.get("task", "sequence-classification")) if contents.record else None


def _sections(contents: Contents, base: str | None, repo_id: str, license: str | None) -> Iterator[str]:
    names = [str(document.get("name")) for document in contents.adapters.values()]
    title = repo_id.rpartition("/")[2] if len(names) != 1 or names == ["default"] else names[0]
    yield f"# {title}"
    kind = {0: "A model", 1: "A bottleneck adapter"}.get(len(names), f"{len(names)} bottleneck adapters")
    yield f"{kind} for {f'`{base}`' if base else 'a frozen Transformer'}, trained with adapterx. {_licence(license)}"
    if metrics := _figures(contents):
        yield "## Figures"
        yield metrics
        if _numbers(contents).get("eval_examples"):
            yield "The scores are those on the examples that the training held out."
    yield "## Use"
    yield from _use(contents, base, repo_id)
    for place, document in contents.adapters.items():
        yield f"## Configuration{f' of `{place}`' if place else ''}"
        yield _table(_given(document.get("config")))
    if options := _given(contents.record.get("options")):
        yield "## Training"
        yield _table({name: value for name, value in options.items() if name not in ("adapter", "model")})
        yield _table(_given(contents.record.get("versions")))


def _licence(license: str | None) -> str:
    return f"Licence: {license}." if license else "Its author has named no licence; that of the base model applies too."


def _figures(contents: Contents) -> str:
    numbers = _numbers(contents)
    return _table(numbers) if numbers else ""


def _numbers(contents: Contents) -> dict[str, float]:
    """Return all scores and counts that the run has written."""
    metrics = contents.documents.get(METRICS, {})
    return {name: value for name, value in metrics.items() if type(value) in (int, float) and name not in _FORMAT}


def _use(contents: Contents, base: str | None, repo_id: str) -> Iterator[str]:
    places = list(contents.adapters.items())
    if places:
        described = places[0][1].get("base_model") or {}
        cls = described.get("class") if str(described.get("class")).isidentifier() else None
        cls = cls or "AutoModel"
        commit = f', revision="{described["commit"]}"' if described.get("commit") else ""
        lines = [
            "import adapterx",
            "from adapterx.integrations.hub import from_hub",
            f"from transformers import {cls}",
            "",
            f'model = {cls}.from_pretrained("{base or "owner/base"}"{commit})',
        ]
        for place, _ in places:
            inside = f', subfolder="{place}"' if place else ""
            lines.append(f'adapterx.load_adapter(model, from_hub("{repo_id}"{inside}))')
        if "fusion_config.json" in contents.documents:
            lines.append(f'adapterx.load_fusion(model, from_hub("{repo_id}"))')
        yield "```python\n" + "\n".join(lines) + "\n```"
    if contents.record:
        folder = repo_id.rpartition("/")[2]
        yield "With its head, in a shell:"
        yield f"```\nadapterx pull {repo_id} {folder}\nadapterx predict {folder} 'A text.'\n```"


def _given(values: Any) -> dict[str, Any]:
    """Return what was set, without what stands for nothing."""
    if not isinstance(values, Mapping):
        return {}
    return {name: value for name, value in values.items() if value not in (None, []) and value is not False}


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
