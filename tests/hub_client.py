"""A stand-in for the hub's client: repositories are folders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class HubClient:
    """Repositories lie below `place`. `made`: name, kind, privacy of each; `replaced`: patterns of the last upload."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made: list[tuple[str, str, bool]] = []
        self.replaced: Sequence[str] | None = None

    def HfApi(self, **_: Any) -> HubClient:
        return self

    def create_repo(self, repository: str, **given: Any) -> None:
        self.made.append((repository, given["repo_type"], given["private"]))

    def upload_folder(
        self, repo_id: str, repo_type: str, folder_path: Path, delete_patterns: Sequence[str] | None
    ) -> str:
        self.replaced = delete_patterns
        shutil.copytree(folder_path, self.place / repo_id)
        return f"https://example.org/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"

    def snapshot_download(self, repository: str, allow_patterns: list[str], local_dir: Path, **_: Any) -> str:
        local_dir.mkdir()
        for name in allow_patterns:
            if (self.place / repository / name).is_file():
                (local_dir / name).write_bytes((self.place / repository / name).read_bytes())
        return str(local_dir)

    def hf_hub_download(self, repository: str, name: str, repo_type: str, local_dir: Path) -> str:
        assert (repository, repo_type) in [made[:2] for made in self.made]
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copyfile(self.place / repository / name, local_dir / name))
