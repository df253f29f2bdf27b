"""Defines the settings of a LoRA adapter, with peft's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from srl.config.strict_yaml import refuse_unknown
from srl.errors import UsageError

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """The settings of a LoRA adapter, with peft's names and meanings.

    Attributes:
        r: the rank.
        lora_alpha: the adapter's output is multiplied by lora_alpha / r.
        lora_dropout: the dropout before the adapter in training.
        target_modules: "all-linear" for every linear layer except the head, or names of layers.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = _ALL_LINEAR

    @classmethod
    def of(cls, values: object) -> LoraSettings | None:
        """Returns the settings of an experiment's `lora` block; None for null.

        Raises:
            UsageError: a key is unknown (the message names the nearest one), or a value is not
                allowed.
        """
        if values is None:
            return None
        if not isinstance(values, Mapping):
            raise UsageError(
                f"lora is {values!r}; give a block such as lora: {{r: 16, lora_alpha: 32}}, "
                "or null for none"
            )
        refuse_unknown(values, [field.name for field in fields(cls)], "lora")
        for key in ("r", "lora_alpha"):
            value = values.get(key, 1)
            if type(value) is not int or value < 1:
                raise UsageError(f"lora.{key} is {value!r}; give a whole number of 1 or more")
        dropout = values.get("lora_dropout", 0.0)
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise UsageError(f"lora.lora_dropout is {dropout!r}; give 0 or more, and less than 1")
        modules = values.get("target_modules", _ALL_LINEAR)
        names = modules if isinstance(modules, list) else [modules]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(
                f"lora.target_modules is {modules!r}; give {_ALL_LINEAR}, or names of layers such "
                "as [q_proj, v_proj]"
            )
        return cls(**{**dict(values), "lora_dropout": float(dropout)})

    def to_json(self) -> dict[str, object]:
        """Returns the settings as an experiment file stores them."""
        return asdict(self)
