"""Checks that a model has an embedding for every token that its tokenizer writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srl.data.prompts import CLOSE, OPEN, ensure_pad
from srl.errors import UsageError


def fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes the tokenizer pad with a token that the model has; refuses tokens without embeddings.

    More embeddings than tokens are fine; many models have them. Two kinds of tokens may lack an
    embedding: a padding token that was added late, which EOS replaces, and special tokens that are
    in no prompt (Gemma 3 has one for images).

    Raises:
        UsageError: other tokens have no embedding, or there is no token to pad with.
    """
    size = embeddings(model)
    if (tokenizer.pad_token_id or 0) >= size:
        tokenizer.pad_token = tokenizer.eos_token
    ensure_pad(tokenizer)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if not beyond:
        return
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, OPEN, CLOSE}
    template = str(tokenizer.chat_template or "")
    needed = [
        token
        for token in sorted(beyond, key=beyond.__getitem__)
        if token not in special or token in named or token in template
    ]
    if needed:
        raise UsageError(
            f"the tokenizer has {len(beyond)} tokens more than the model has embeddings: "
            f"{needed[0]!r} has the id {beyond[needed[0]]}, and the model {size} embeddings. "
            "Resize the model once, save it, and give that folder: "
            "model.resize_token_embeddings(len(tokenizer)); or give the tokenizer that belongs to "
            "the model"
        )


def check_ids(model: PreTrainedModel, texts: Iterable[Sequence[int]]) -> None:
    """Checks that the model has an embedding for every token id of the texts.

    Raises:
        UsageError: a text contains the id of a token without an embedding.
    """
    size = embeddings(model)
    highest = max((max(ids, default=0) for ids in texts), default=0)
    if highest >= size:
        raise UsageError(
            f"a text of the data spells out the token of the id {highest}, and the model has "
            f"{size} embeddings; take it out of the data, or resize the model once, with "
            "model.resize_token_embeddings(len(tokenizer)), save it, and give that folder"
        )


def embeddings(model: PreTrainedModel) -> int:
    """Returns the number of tokens that the model can read."""
    return int(model.get_input_embeddings().weight.shape[0])
