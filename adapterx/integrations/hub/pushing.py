"""Push what a folder or a model holds to the hub: everything is checked first, and goes in one commit."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from adapterx.checkpoint import save_adapter
from adapterx.checkpoint.document import PACKAGE_VERSION
from adapterx.errors import speaking_as
from adapterx.integrations.hub.card import MARK, model_card_of
from adapterx.integrations.hub.contents import OWN_NAMES, Contents, read_contents, with_base
from adapterx.integrations.hub.service import LIBRARY, asking_for, library

CARD = "README.md"


@speaking_as("push_to_hub")
def push_to_hub(
    source: nn.Module | str | Path,
    repo_id: str,
    name: str | None = None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    language: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Push an adapter, a fusion with its adapters, or a run to the hub, with a model card, in one commit.

    The repository is made if it is not there. Files of adapterx that an earlier push left and that are no longer
    part are deleted in the same commit; a `README.md` that somebody wrote is kept.

    Args:
        source: a model with the adapter, or a folder that `save_adapter`, `save_fusion` or `adapterx train` wrote; one
            with several adapters in folders of their own goes as a whole.
        repo_id: name of the repository, such as `"owner/name"`.
        name: of the adapter, where `source` is a model; None takes the only one, or the only active one.
        base_model: name of the base model on the hub; None takes what the files record.
        license: what the adapter may be used for, such as `"apache-2.0"`, for the card.
        dataset: name of the training data on the hub, for the card.
        language: of the data, such as `"en"`, for the card.
        private: whether others must not see a repository that is made now.
        revision: a branch, made if it is not there; None takes the main one.
        create_pr: whether to propose the change instead of making it.
        message: of the commit.
        token: of an account that may write; None takes the one that is logged in.

    Returns:
        The address of the commit, or of the proposal.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: the folder is damaged or holds nothing of ours, or the hub refuses.
        ConfigError: `repo_id` is no name of a repository, or the base model of a run is a folder of this machine.
        TypeError: `name` is given with a folder.
        ExtensionError: huggingface_hub is not installed.
    """
    library()
    told = {"license": license, "dataset": dataset, "language": language}
    where = {"private": private, "revision": revision, "create_pr": create_pr, "message": message, "token": token}
    if not isinstance(source, nn.Module):
        if name is not None:
            raise TypeError("push_to_hub: name must be given with a model only, a folder holds its adapters by name")
        return _push(with_base(read_contents(source), base_model), repo_id, told, **where)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(source, folder, name)
        return _push(with_base(read_contents(folder), base_model), repo_id, told, **where)


def _push(
    contents: Contents,
    repo_id: str,
    told: dict[str, str | None],
    *,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    token: str | bool | None,
) -> str:
    hub = library()
    api = hub.HfApi(token=token, library_name=LIBRARY, library_version=PACKAGE_VERSION)
    with asking_for(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, revision=None if create_pr else revision))
        operations = _additions(hub, contents)
        if not (CARD in there and _is_written_by_hand(api, repo_id, revision)):
            card = model_card_of(contents, repo_id=repo_id, **told)
            operations.append(hub.CommitOperationAdd(CARD, card.encode()))
        kept = {operation.path_in_repo for operation in operations}
        gone = sorted(file for file in there - kept if file.rpartition("/")[2] in OWN_NAMES)
        operations += [hub.CommitOperationDelete(file) for file in gone]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Push {_described(contents)} with adapterx",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _additions(hub: Any, contents: Contents) -> list[Any]:
    """Return what is to be written: the files that were checked, and documents in the place of those that changed."""
    return [
        hub.CommitOperationAdd(name, contents.changed.get(name, str(contents.folder / name))) for name in contents.files
    ]


def _is_written_by_hand(api: Any, repo_id: str, revision: str | None) -> bool:
    path = api.hf_hub_download(repo_id, CARD, revision=revision)
    return MARK not in Path(path).read_text(encoding="utf-8", errors="replace")


def _described(contents: Contents) -> str:
    names = [str(document.get("name")) for document in contents.adapters.values()]
    return f"the adapter{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else "a run"
