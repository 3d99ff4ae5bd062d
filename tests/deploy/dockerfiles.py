"""Reads a Dockerfile into its stages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ("Instruction", "Stage", "stages_of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, its continued lines joined, without comments."""

    name: str
    text: str


@dataclass(slots=True, kw_only=True)
class Stage:
    """What begins with FROM."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The texts of the instructions of one kind, in order."""
        return [instruction.text for instruction in self.instructions if instruction.name == name]

    def last(self, name: str) -> str:
        """The one that counts where only one does."""
        return self.all(name)[-1]


def stages_of(text: str) -> list[Stage]:
    """The stages of a Dockerfile, arguments of FROM put in."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for joined in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, rest = joined.partition(" ")
        if name == "FROM":
            for key, value in arguments.items():
                rest = rest.replace(f"${{{key}}}", value)
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(base=base, name=alias))
        elif stages:
            stages[-1].instructions.append(Instruction(name=name, text=rest.strip()))
        elif name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value
    return stages
