"""Files of the Hugging Face hub: from the network, else from its cache, else an error that says what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

CONFIG_FILES = ("*.json", "*.jinja")
"""Patterns of everything but the weights."""


class HubUnreachableError(FileNotFoundError):
    """The hub does not answer, and its cache does not have what is asked for."""


def hub_folder(
    name: str, kind: Literal["model", "dataset"], patterns: Sequence[str], revision: str = "", *, offline: bool = False
) -> Path:
    """Folder of a repository with the files that match `patterns`; those that the cache has are not fetched again.

    Raises HubUnreachableError, or ValueError if the hub refuses (no such name, or one that needs a login).
    """
    # Late: only a hub name needs the hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision or None,
                allow_patterns=list(patterns),
                local_files_only=offline,
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        what = f"{kind} {name}" + (f" (revision {revision})" if revision else "")
        fetch = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
        raise HubUnreachableError(
            f"{what} is not in the hub's cache, and the hub does not answer from here. Fetch it where there is a network "
            f"(`{fetch}`) and copy that cache here (HF_HOME), or give the path of a local copy instead of the name."
        ) from error
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no name of a {kind} on the hub (organisation/name): {error}") from error
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub refuses {kind} {name}: {str(error).splitlines()[0]}. Check the spelling; for one that needs permission, "
            "`hf auth login` first."
        ) from error
