"""The commands on folders of adapters: list, rename, average, and the way to the hub and back."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterx.cli import inventory as inventories
from adapterx.cli.averaging import average_folders
from adapterx.cli.commands import PATH, command, option
from adapterx.cli.paths import check_folder
from adapterx.cli.pulling import pull_folder
from adapterx.cli.records import to_json
from adapterx.cli.reporting import print_figures, print_table, put, say

_command = functools.partial(command, panel="Folders and hub")

Folder = Annotated[Path, typer.Argument(help="Folder of an adapter.", show_default=False, **PATH)]
Folders = Annotated[list[Path], typer.Argument(help="Folders of adapters or of runs.", show_default=False, **PATH)]
Repository = Annotated[
    str, typer.Argument(help="Name of a repository on the hub, such as owner/name.", show_default=False)
]
Revision = Annotated[str | None, option("Branch, tag or commit (default: the main branch).")]
Token = Annotated[str | None, option("Token of the hub (default: HF_TOKEN, or that of `hf auth login`).")]


@_command
def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders to look in, and below (default: this one).", show_default=False, **PATH),
    ] = None,
    as_json: Annotated[bool, option("Print JSON instead of a table.", "--json")] = False,
) -> None:
    """List the runs, adapters and fusions in folders and below them."""
    found = inventories.inventory(folders or [Path()])
    if as_json:
        put(to_json(found).decode())
    elif found:
        print_table(inventories.as_rows(found))
    else:
        say("no adapters, runs or fusions here")


@_command
def rename(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The new name.", show_default=False)],
    output: Annotated[Path | None, option("Write the renamed adapter here; the other stays.", **PATH)] = None,
) -> None:
    """Give a saved adapter another name."""
    from adapterx.checkpoint import rename_saved_adapter

    if output is not None:
        check_folder(output)
    rename_saved_adapter(folder, name, output)
    say(f"{output or folder}: {name}")


@_command
def average(
    folders: Folders,
    output: Annotated[Path, option("Folder to write to; new or empty.", **PATH)],
    weights: Annotated[
        list[float] | None, option("Weight of each folder, in their order; repeat (default: all alike).", "--weight")
    ] = None,
    name: Annotated[str | None, option("Name of the new adapter (default: that of the first).")] = None,
    other_base: Annotated[bool, option("Accept adapters of different base weights.", "--other-base")] = False,
) -> None:
    """Average the weights of adapters, and of their heads where these agree; of runs, into a run."""
    check_folder(output)
    done = average_folders(folders, output, name=name, weights=weights, check_base=not other_base)
    print_figures("average", done)


@_command
def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, an adapter or a fusion.", show_default=False, **PATH)
    ],
    repository: Repository,
    base_model: Annotated[str | None, option("Name of the base model on the hub (default: as recorded).")] = None,
    license: Annotated[str | None, option("Licence of the adapter, such as apache-2.0, for its card.")] = None,
    dataset: Annotated[str | None, option("Name of the training data on the hub, for the card.")] = None,
    language: Annotated[str | None, option("Language of the data, such as en, for the card.")] = None,
    private: Annotated[bool, option("Make a repository that others cannot see.", "--private")] = False,
    revision: Annotated[str | None, option("Branch, made if it is not there (default: the main one).")] = None,
    create_pr: Annotated[bool, option("Propose the change instead of making it.", "--create-pr")] = False,
    message: Annotated[str | None, option("Message of the commit.")] = None,
    token: Token = None,
) -> None:
    """Push a run, an adapter or a fusion to the Hugging Face hub, with a model card made from its figures."""
    from adapterx.integrations.hub import push_to_hub

    told: dict[str, Any] = {"license": license, "dataset": dataset, "language": language, "message": message}
    where = {"private": private or None, "revision": revision, "create_pr": create_pr, "token": token}
    say(push_to_hub(folder, repository, base_model=base_model, **told, **where))


@_command
def pull(
    repository: Repository,
    output: Annotated[Path, typer.Argument(help="Folder to write to; new or empty.", show_default=False, **PATH)],
    subfolder: Annotated[str | None, option("Part of the repository, where it holds several adapters.")] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Fetch a run, an adapter or a fusion from the Hugging Face hub into a folder."""
    check_folder(output)
    names = pull_folder(repository, output, subfolder=subfolder, revision=revision, token=token)
    say(f"written to {output}: {', '.join(names)}")
