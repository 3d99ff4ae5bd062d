"""Which extensions of the Open Inference Protocol this server has, for the metadata that it gives of itself."""

from __future__ import annotations

__all__ = ("SERVER_NAME", "extensions")

SERVER_NAME = "modelbox"


def extensions(*, shared_memory: bool, repository: bool) -> tuple[str, ...]:
    """Their names, in the spelling that clients know.

    Args:
        shared_memory: Whether clients may register shared memory.
        repository: Whether clients may load and unload models; they may ask what there is in any case.
    """
    names = ["binary_tensor_data", "parameters", "schedule_policy", "model_configuration", "statistics"]
    if repository:
        names.append("model_repository")
    if shared_memory:
        names.append("system_shared_memory")
    return tuple(names)
