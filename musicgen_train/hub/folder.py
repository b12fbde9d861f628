"""Finds pretrained files in a folder on this disk or in a repository of the Hugging Face hub."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"

# "name" or "owner/name", as huggingface_hub allows them.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAMES_SHOWN = 12


class PretrainedFolder:
    """Finds the files of a local folder, or of a repository of the hub, which are fetched one by one when needed.

    All files of a repository come from the commit of the first file, even if somebody pushes meanwhile.

    Args:
        name_or_path: a local folder, or a hub id such as `facebook/musicgen-small`. A folder that exists wins.
        subfolder: a folder inside it that holds the files.
        revision: branch, tag or commit of the hub repository.
        token: an access token of the hub; by default the one of `hf auth login`, if any.
        cache_dir: where files of the hub are kept; by default huggingface_hub's own cache.
        local_files_only: use only the cache, not the network.

    Raises:
        FileNotFoundError: `name_or_path` reads like a path and no folder is there, or `subfolder` is not in it.
        NotADirectoryError: `name_or_path` is a file.
        ValueError: `name_or_path` is empty.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.name = os.fspath(name_or_path)
        self.subfolder = subfolder
        self._revision = revision
        self._token = token
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._local_files_only = local_files_only
        if not self.name:
            raise ValueError("the name of the model is empty; give a folder or a hub id (owner/name)")
        path = Path(self.name).expanduser()
        self.path: Path | None = path / subfolder if path.is_dir() else None
        if self.path is not None and not self.path.is_dir():
            raise FileNotFoundError(f"{self.name} has no folder {subfolder!r}. It holds: {_list_names(path)}")
        if self.path is None and path.is_file():
            raise NotADirectoryError(f"{self.name} is a file; give the folder that holds it")
        if self.path is None and not _HUB_ID.fullmatch(self.name):
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine, and it cannot be a hub id either (owner/name)"
            )

    def __str__(self) -> str:
        return f"{self.name}/{self.subfolder}" if self.subfolder else self.name

    def find(self, filename: str) -> Path | None:
        """Return the local path of `filename`, fetched from the hub if need be; None if the folder does not have it.

        Raises:
            FileNotFoundError: the hub repository or revision does not exist, is private, or cannot be reached.
        """
        if self.path is not None:
            path = self.path / filename
            return path if path.is_file() else None
        return self._fetch(filename)

    def require(self, filename: str, purpose: str) -> Path:
        """Return the path like `find`. A missing file raises FileNotFoundError with its purpose and what is there."""
        path = self.find(filename)
        if path is None:
            raise FileNotFoundError(f"{self} has no {filename} ({purpose}). {self.describe()}")
        return path

    def describe(self) -> str:
        """Return a sentence that names the files there are, for error messages."""
        if self.path is not None:
            names = _list_names(self.path)
            return f"The folder holds: {names}." if names else "The folder is empty."
        snapshot = self._cached_snapshot()
        names = _list_names(snapshot / self.subfolder) if snapshot is not None else ""
        reach = ", and the hub may not be asked (local_files_only)" if self._local_files_only else ""
        return f"The hub's cache holds: {names or 'nothing'}{reach}."

    def _fetch(self, filename: str) -> Path | None:
        # Imported here because it is slow to import and a local folder never needs it.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            fetched = hf_hub_download(
                self.name,
                filename,
                subfolder=self.subfolder or None,
                revision=self._revision,
                token=self._token,
                cache_dir=self._cache_dir,
                local_files_only=self._local_files_only,
            )
        except LocalEntryNotFoundError as error:
            # The hub was not reached. A snapshot in the cache is then all that is known of the repository.
            if self._cached_snapshot() is not None:
                return None
            why = "may not be asked (local_files_only)" if self._local_files_only else "was not reached"
            at = f" at revision {self._revision!r}" if self._revision else ""
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine and not in the hub's cache{at}, and the hub {why}"
            ) from error
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise FileNotFoundError(
                f"access to {self.name} must be asked for on its hub page; then log in with `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{self.name} has no revision {self._revision!r} on the hub") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise FileNotFoundError(
                f"{self.name} is no folder on this machine and no repository of the hub that this account can read"
            ) from error
        except (HfHubHTTPError, ConnectionError) as error:
            raise FileNotFoundError(f"{self.name} could not be read from the hub: {error}") from error
        path = Path(fetched)
        self._pin_commit(path)
        return path

    def _pin_commit(self, fetched: Path) -> None:
        # The layout is <cache>/models--<owner>--<name>/snapshots/<commit>/<subfolder>/<filename>
        for below, folder in itertools.pairwise(fetched.parents):
            if folder.name == "snapshots":
                self._revision = below.name
                return

    def _cached_snapshot(self) -> Path | None:
        """Return the folder of this repository and revision in the hub's cache, if any of it was ever fetched."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        repository = Path(self._cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(
            repo_id=self.name, repo_type="model"
        )
        revision = self._revision or constants.DEFAULT_REVISION
        reference = repository / "refs" / revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        snapshot = repository / "snapshots" / commit
        return snapshot if snapshot.is_dir() else None


def _list_names(folder: Path) -> str:
    """Return the names in a folder as text of a readable length; "" if there are none."""
    if not folder.is_dir():
        return ""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
