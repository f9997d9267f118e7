"""Checkpoints from a Hugging Face hub, into its own cache: `hf://org/name`, `hf://org/name@revision`."""

import re
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.formats.weight_files import COMPANIONS, WEIGHTS

SCHEME = "hf://"
ADDRESS = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?"
)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def download(address: str, *, offline: bool) -> Path:
    """The local path of what `address` names, fetched as far as the cache does not hold it yet.

    The token, the endpoint and the cache are the hub library's: HF_TOKEN, HF_ENDPOINT, HF_HOME. An
    interrupted download is taken up where it broke off. `offline` takes the cache as it is.
    Raises ExportError in one sentence.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ExportError(
            f"{address} is no address of a hub; one is hf://ORG/NAME or hf://ORG/NAME/FILE.gguf, with "
            "@REVISION if it is not the main one"
        )
    repository, revision = found["repository"], found["revision"]
    if found["file"]:
        return _fetch(repository, revision, (found["file"],), offline) / found["file"]
    directory = _fetch(repository, revision, (*COMPANIONS, *SAFETENSORS), offline)
    if not any((directory / name).is_file() for name in WEIGHTS):
        directory = _fetch(repository, revision, (*COMPANIONS, *TORCH), offline)
    return directory


def _fetch(repository: str, revision: str | None, files: Sequence[str], offline: bool) -> Path:
    # Here, because it takes most of a second to load and only this needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(
            repository, revision=revision, allow_patterns=list(files), local_files_only=offline
        )
    except GatedRepoError as error:
        raise ExportError(f"{repository} is gated: accept its terms, and give a token in HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ExportError(f"{repository} is not there, or private: give a token in HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ExportError(f"{repository} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        where = "offline" if offline else "the hub cannot be reached"
        raise ExportError(f"{repository} is not in the cache as a whole, and {where}") from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{repository} cannot be fetched: {reason}; run it again to go on") from error
    return Path(path)
