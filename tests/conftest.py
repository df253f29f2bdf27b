"""Shared by all tests: offline, one thread, the same examples on every run, tokenizers on the spot.

The tokenizers are built from `tokenizers` in memory: nothing is downloaded and no file is needed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# No data base: a test run leaves no folder behind, and every run tries the same examples.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
