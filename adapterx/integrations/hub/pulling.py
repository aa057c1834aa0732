"""Fetch what stands under a name on the hub: its documents first, so that nothing large comes that is no adapter."""

from pathlib import Path

from adapterx.checkpoint.document import PACKAGE_VERSION
from adapterx.checkpoint.formats import ADAPTERHUB, format_of
from adapterx.errors import CheckpointError, speaker, speaking_as
from adapterx.integrations.hub.contents import RUN
from adapterx.integrations.hub.service import LIBRARY, asking_for, library

_DOCUMENTS = ("*.json", "README.md")
_TENSORS = ("*.safetensors", "*.png")
# What AdapterHub's older adapters come in: `adapterx.integrations.adapterhub` reads them without running a pickle.
_OF_ADAPTERHUB = ("pytorch_adapter.bin", "pytorch_model_head.bin", "pytorch_model_adapter_fusion.bin")
_THEIR_FUSION = "adapter_fusion_config.json"
_MARKS = ("adapter_config.json", "fusion_config.json", _THEIR_FUSION, RUN)


@speaking_as("from_hub")
def from_hub(
    repo_id: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download an adapter, a fusion or a run into the cache; return its folder there, for `load_adapter` and others.

    What is in the cache already is not downloaded again. Adapters of AdapterHub and PEFT are fetched too, for the
    functions that read them. The folder is shared: read it, and copy it before you change it.

    Args:
        repo_id: name of a repository, such as `"owner/name"`.
        subfolder: the part of the repository that is meant, where it holds several adapters.
        revision: a branch, a tag or a commit; None takes the newest.
        token: of an account that may read it; None takes the one that is logged in, False none.
        cache_dir: another folder than the cache of huggingface_hub.
        local_files_only: take what is in the cache, and ask nobody.

    Returns:
        A folder that holds the files.

    Raises:
        CheckpointError: it does not exist or may not be read, cannot be reached, or holds no adapter, fusion or run.
        ConfigError: `repo_id` is no name of a repository.
        ExtensionError: huggingface_hub is not installed.
    """
    hub = library()
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    options |= {"library_name": LIBRARY, "library_version": PACKAGE_VERSION}
    inside = "" if subfolder is None else f"{subfolder.strip('/')}/"
    with asking_for(repo_id):
        found = Path(hub.snapshot_download(repo_id, allow_patterns=[inside + name for name in _DOCUMENTS], **options))
        folder = found / inside
        if not _is_ours(folder):
            within = sorted(path.parent.relative_to(found).as_posix() for path in found.glob("*/adapter_config.json"))
            hint = f"; there are some in the subfolders {', '.join(within[:8])}" if within else ""
            raise CheckpointError(
                f"{speaker()}: {repo_id}{f' in {subfolder}' if inside else ''} must hold an adapter, a fusion or a "
                f"run, it holds none{hint}"
            )
        theirs = (folder / _THEIR_FUSION).exists() or format_of(folder) == ADAPTERHUB
        older = _OF_ADAPTERHUB if theirs else ()
        wanted = [inside + name for name in (*_DOCUMENTS, *_TENSORS, *older)]
        return Path(hub.snapshot_download(repo_id, allow_patterns=wanted, **options)) / inside


def _is_ours(folder: Path) -> bool:
    """Tell whether there is something to load; a repository of several adapters is loaded by its subfolders."""
    return any((folder / name).exists() for name in _MARKS)
