"""`adapterx pull`: copy what the hub holds out of the cache into a folder of the user's, all of it or nothing."""

import shutil
from pathlib import Path

from adapterx.cli.paths import check_empty
from adapterx.cli.records import RECORD
from adapterx.cli.runs import staged


def pull_folder(
    repository: str, output: Path, *, subfolder: str | None, revision: str | None, token: str | None
) -> list[str]:
    """Fetch a repository into a folder that holds nothing; return the names of what was written.

    Raises:
        ConfigError: the folder holds something.
        AdapterxError: the repository cannot be had, or holds nothing of ours.
    """
    from adapterx.integrations.hub import from_hub

    check_empty(output)
    source = from_hub(repository, subfolder=subfolder, revision=revision, token=token)
    entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    with staged(output, last=RECORD) as staging:
        for path in entries:  # the cache holds links, which are followed
            if path.is_dir():
                shutil.copytree(path, staging / path.name)
            else:
                shutil.copyfile(path, staging / path.name)
    return [path.name for path in entries]
