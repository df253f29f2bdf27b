"""Shared by all tests: offline, one thread, the same examples on every run, tokenizers on the spot.

The tokenizers are built from `tokenizers` in memory: nothing is downloaded and no file is needed.
So is the toy policy: it has learned in a second to write one of four steps, whatever it is asked.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gc
import json
import random
import re
import signal
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import yaml
from hypothesis import settings

from environments.types import Trajectory
from rewards.pool import cores

# What `make test` tells its children: messages then name make, and make itself says more.
for name in ("SRL_STARTED_BY", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from srl.config.settings import SRLConfig

# A test run that a shell started in the background inherits an ignored Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No data base: a test run leaves no folder behind, and every run tries the same examples.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# As measured on two cores.
LONGEST = (
    *("test_cli.py", "test_equivalence.py", "test_compare_runner.py", "test_cli_rewards.py"),
    *("test_hostile.py", "test_report_browser.py", "test_lora.py", "test_stopping.py"),
    *("test_trainer.py", "test_gpu_script.py", "test_reward_pool.py", "test_bench.py"),
    *("test_gap.py", "test_mixed_runs.py", "test_by_the_clock.py", "test_trainer_inputs.py"),
    *("test_check_data.py", "test_answer_reward.py", "test_resuming.py", "test_sft.py"),
    *("test_loss.py", "test_wrapped_scoring.py", "test_demonstrations.py", "test_thoughts.py"),
    *("test_environments.py", "test_tree_attention.py", "test_compare_order.py"),
)


class TokenizerMaker(Protocol):
    """The signature of the fixture `make_tokenizer`."""

    def __call__(
        self,
        *,
        chat_template: str | None = None,
        bos: bool = False,
        eos: str | None = "<eos>",
        pad: str | None = "<pad>",
        special: tuple[str, ...] = (),
        learn_from: tuple[str, ...] = (),
    ) -> PreTrainedTokenizerFast: ...


def build_tokenizer(
    *,
    chat_template: str | None = None,
    bos: bool = False,
    eos: str | None = "<eos>",
    pad: str | None = "<pad>",
    special: tuple[str, ...] = (),
    learn_from: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 256 bytes, special tokens, and merges if given a text for them.

    Args:
        chat_template: a Jinja template, or None.
        bos: put `<bos>` before every text that is encoded with special tokens, as Llama does.
        eos: the end token, or None.
        pad: the padding token, or None; may equal `eos`.
        special: further special tokens, such as `<think>`.
        learn_from: texts to learn 200 merges from.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if learn_from:
        inner.train_from_iterator(
            learn_from,
            trainers.BpeTrainer(
                vocab_size=456, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
            ),
        )
    named = {"bos_token": "<bos>" if bos else None, "eos_token": eos, "pad_token": pad}
    inner.add_special_tokens(list(dict.fromkeys([t for t in named.values() if t] + [*special])))
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A",
            pair="<bos> $A <bos> $B",
            special_tokens=[("<bos>", inner.token_to_id("<bos>"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=chat_template, clean_up_tokenization_spaces=False,
        **{key: token for key, token in named.items() if token},
    )  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: some tests wait for deadlines, or for processes they start."""
    return cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no core waits for them at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """All libraries are imported by now: the garbage collector need not look at them ever again.

    It took a third of the tests' time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _state_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Code that tests run is noted in a place of their own: `srl/config/trust.py`."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _no_module_of_another_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imports from its folder is gone with it: others call their modules the same."""
    path, before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    base = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(base):
            del sys.modules[name]


@pytest.fixture(scope="session")
def make_tokenizer() -> TokenizerMaker:
    """`build_tokenizer`, for tests that need a special kind."""
    return build_tokenizer


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, `<eos>` and `<pad>`, no chat template, think tags as plain text."""
    return build_tokenizer()


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with a ChatML template, `<|im_end|>` as the end, and think tags as special tokens."""
    return build_tokenizer(
        chat_template=CHATML,
        eos="<|im_end|>",
        special=("<|im_start|>", "<think>", "</think>"),
    )


# ---- the toy: four steps that share few letters, a policy that picks among them blindly ---------

TOY_STEPS = (
    "add the red box",
    "multiply by thirty seven",
    "so we go on quickly",
    "the answer is 4",
)
TOY_CONTEXT = 64


def toy_trajectories(count: int, *, long: bool = True) -> list[Trajectory]:
    """Problems that differ in their number only; the expert adds (and multiplies), then answers."""
    steps = (TOY_STEPS[0], TOY_STEPS[1], TOY_STEPS[3]) if long else (TOY_STEPS[0], TOY_STEPS[3])
    return [
        Trajectory(f"case {' '.join(f'{i:03d}')}", steps, answer="4", source="toy")
        for i in range(count)
    ]


def write_toy_data(path: Path, count: int) -> Path:
    """The toy's trajectories as a user's own JSONL file."""
    rows = [
        {"problem": t.problem, "steps": list(t.texts), "answer": t.answer}
        for t in toy_trajectories(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_tokenizer(*, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """Bytes with merges, so that every word of the toy is one token; think tags are tokens."""
    words = " ".join((*TOY_STEPS, "hm", "case"))
    return build_tokenizer(eos=eos, special=("<think>", "</think>"), learn_from=(words,) * 3)


def toy_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, context: int = TOY_CONTEXT
) -> Qwen2ForCausalLM:
    """Qwen2 with 20 thousand random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


@pytest.fixture(scope="session")
def toy_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder. Its policy answers any prompt with a thought and one of four steps, each
    about as often; one completion in six lacks the closing tag.
    """
    import torch

    from srl.data.prompts import PromptFormat
    from srl.data.steps import build_examples

    tokenizer = toy_tokenizer()
    model = toy_model(tokenizer)
    form = PromptFormat(tokenizer, system_prompt=None)
    examples = build_examples(toy_trajectories(200), targets="all")
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        rows = []
        for example in rng.sample(examples, 32):
            close = "</think>" if rng.random() < 5 / 6 else ""
            text = f"<think> hm{close} {rng.choice(TOY_STEPS)}"
            written = tokenizer.encode(text, add_special_tokens=False)
            rows.append((form.encode_example(example), [*written, tokenizer.eos_token_id]))
        longest = max(len(prompt) + len(written) for prompt, written in rows)
        ids, labels = [], []
        for prompt, written in rows:
            rest = longest - len(prompt) - len(written)
            ids.append([*prompt, *written, *[tokenizer.pad_token_id] * rest])
            labels.append([*[-100] * len(prompt), *written, *[-100] * rest])
        model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("policy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Under these the toy policy makes a step in about 50 ms.
TOY_SETTINGS: dict[str, object] = {
    "use_cpu": True,
    "system_prompt": None,
    "whole_system_prompt": None,
    "targets": "all",
    "max_completion_length": 12,
    "prompts_per_step": 4,
    "num_generations": 4,
    "solve_max_steps": 4,
}


def toy_values(folder: Path, **changes: object) -> dict[str, object]:
    """The toy settings for three steps, with changes."""
    more = {
        "output_dir": str(folder),
        "learning_rate": 3e-3,
        "max_steps": 3,
        "save_strategy": "no",
    }
    return {**TOY_SETTINGS, **more, **changes}


def toy_config(folder: Path, **changes: object) -> SRLConfig:
    """The same as Python takes them."""
    from srl.config.settings import SRLConfig

    return SRLConfig(**toy_values(folder, **changes))  # type: ignore[arg-type]


def read_jsonl(path: Path) -> list[dict[str, object]]:
    """The lines of a log; NaN and infinity, which are no JSON, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def groups_of(records: list[dict[str, object]]) -> list[list[dict[str, object]]]:
    """Step records as they were sampled together."""

    def key(record: dict[str, object]) -> tuple[object, object, object]:
        return record["phase"], record["train_step"], record["group_id"]

    return [list(group) for _, group in groupby(records, key)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether they are equal to the last bit."""
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


# ---- runs through the command line --------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with config.yaml and data.jsonl in it."""
    monkeypatch.chdir(tmp_path)
    write_toy_data(tmp_path / "data.jsonl", 40)
    write_config(tmp_path / "config.yaml", model=str(toy_policy))
    return tmp_path


def write_config(path: Path, **changes: object) -> None:
    values: dict[str, object] = {
        "data": {"source": "files", "path": "data.jsonl"},
        "learning_rate": 1.0e-3,
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "validation_problems": 4,
        "test_problems": 8,
        "short_steps": 2,
    }
    path.write_text(yaml.safe_dump({**TOY_SETTINGS, **values, **changes}), encoding="utf-8")


def train(*words: str, name: str = "one") -> int:
    from srl.commands.cli import main

    return main(["train", "--config", "config.yaml", "--run-name", name, *words])


def refused(capsys: pytest.CaptureFixture[str], code: int, message: str) -> None:
    """Exit code 2, one message that says `message`, nothing else, and no run folder."""
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.err.startswith("srl: ")
    assert shown.err.count("srl: ") == 1
    assert "Traceback" not in shown.err + shown.out
    assert re.search(message, shown.err, re.DOTALL), shown.err
    assert not list(Path("runs").glob("*"))
