"""A folder to a repository on a hub of models and data sets, and back, by the hub's own client and credentials.

Raises `HubError` with the next step for whatever the client refuses; nothing is retried that the client does not retry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from caeav.manifests.core.errors import CaeavError

Made = TypeVar("Made")


class HubError(CaeavError):
    """A repository that cannot be written or read."""


def push_folder(
    folder: Path, repository: str, kind: str, *, private: bool = False, replaced: Sequence[str] = ()
) -> str:
    """Make the repository `owner/name` of `kind` (`model` or `dataset`) if need be, and upload a folder's files.

    `replaced`: patterns of files there that go unless the folder has them. Returns the address of the upload.
    """
    client = _client()
    _checked(repository)
    hint = "log in with `hf auth login`, check the name, or give a folder instead of hub:OWNER/REPO and upload that"

    def upload() -> str:
        api = client.HfApi(library_name="caeav")
        api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository, repo_type=kind, folder_path=folder, delete_patterns=list(replaced) or None
            )
        )

    return _told(upload, f"{repository} could not be written", hint)


def pull_folder(repository: str, kind: str, names: Sequence[str], into: Path) -> Path:
    """Download the files called `names` that a repository has, and no others, into the folder `into`."""
    client = _client()
    _checked(repository)
    hint = "check the name and your access, or download it elsewhere and give the folder"

    def download() -> Path:
        return Path(
            client.snapshot_download(
                repository, repo_type=kind, allow_patterns=list(names), local_dir=into / "repository"
            )
        )

    return _told(download, f"{repository} could not be fetched", hint)


def pull_file(repository: str, kind: str, name: str, into: Path) -> Path:
    """Download one file of a repository below the folder `into`, under its own name."""
    client = _client()
    _checked(repository)
    hint = "check the name and your access; run again, it goes on with what is missing"

    def download() -> Path:
        return Path(client.hf_hub_download(repository, name, repo_type=kind, local_dir=into))

    return _told(download, f"{name} of {repository} could not be fetched", hint)


def _client() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise HubError("hub: needs huggingface_hub", hint="pip install 'caeav[hub]'") from None
    return huggingface_hub


def _checked(repository: str) -> None:
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise HubError(f"{repository!r} is no name on the hub", hint="write hub:OWNER/REPO")


def _told(work: Callable[[], Made], problem: str, hint: str) -> Made:
    try:
        return work()
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise HubError(f"{problem}: {lines[0] if lines else type(error).__name__}", hint=hint) from error
