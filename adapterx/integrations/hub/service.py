"""The library that speaks to the hub, and what it has to say in the words of this one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapterx.errors import AdapterxError, CheckpointError, ConfigError, ExtensionError, speaker

LIBRARY = "adapterx"
_REASONS = (  # by the names of huggingface_hub's errors, the most special first
    ("GatedRepoError", "may only be read by those whom its owner lets in; give a token of an account that may"),
    ("RepositoryNotFoundError", "does not exist, or is private and needs a token"),
    ("RevisionNotFoundError", "has no such revision"),
    ("LocalTokenNotFoundError", "needs a token; give one, or log in with `hf auth login`"),
    ("OfflineModeIsEnabled", "cannot be reached, HF_HUB_OFFLINE is set"),
    ("IncompleteSnapshotError", "is not whole in the cache, and the hub cannot be reached"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub cannot be reached"),
)
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")
_LONGEST = 300  # characters of what the library says


def library() -> Any:
    """Return the module `huggingface_hub`.

    Raises:
        ExtensionError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ExtensionError(
            f"{speaker()}: huggingface_hub must be installed ({error}): pip install huggingface_hub"
        ) from error
    return huggingface_hub


@contextmanager
def asking_for(repo_id: str) -> Iterator[None]:
    """Turn what the library, the network and the hub refuse into one line that names the repository.

    Raises:
        ConfigError: `repo_id` is no name of a repository.
        CheckpointError: everything else.
    """
    try:
        yield
    except AdapterxError:
        raise
    except Exception as error:
        names = [each.__name__ for each in type(error).__mro__]
        if "HFValidationError" in names:
            raise ConfigError(f"{speaker()}: repo_id must be a name such as owner/name, got {repo_id!r}") from error
        for name, reason in _REASONS:
            if name in names:
                raise CheckpointError(f"{speaker()}: {repo_id} {reason}") from error
        transport = type(error).__module__.split(".")[0] in _TRANSPORTS
        if not transport and not isinstance(error, (OSError, ValueError, RuntimeError)):
            raise
        raise CheckpointError(f"{speaker()}: the hub refused {repo_id}: {_status(error)}{_said(error)}") from error


def _status(error: Exception) -> str:
    code = getattr(getattr(error, "response", None), "status_code", None)
    meaning = {401: "no valid token", 403: "the token may not do this", 409: "it was changed meanwhile"}.get(code)
    return f"{meaning}: " if meaning else ""


def _said(error: Exception) -> str:
    told = [error, error.__cause__] if error.__cause__ else [error]
    said = ": ".join(" ".join(str(each).split()) or type(each).__name__ for each in told)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."
