"""``modelbox predict``: loads a model as an application would, and runs it once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, print_json, print_line, print_table
from modelbox.cli.run import text_pairs, with_client
from modelbox.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbox.client import Client

__all__ = ("predict",)

_PREVIEW = 6


def predict(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The model, such as ns/model@prod.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="One input; may be given several times."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIRECTORY", help="Write every output there, as NAME.npy.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.01, help="Seconds until it must be ready.")
    ] = None,
    url: UrlOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Load a model through the local cache, run it once, and print its outputs.

    Example: modelbox predict langtech/silero-vad@prod --input input=frame.npy --input state=state.npy
    """
    arrays = {name: _read(name, Path(path)) for name, path in text_pairs(inputs or [], "--input").items()}

    async def run(client: Client) -> None:
        async with await client.load(ref, timeout=timeout) as model:
            outputs = await model.predict(arrays)
            if save is not None:
                _write(save, outputs)
            if output is OutputFormat.JSON:
                print_json(
                    {
                        "ref": str(model.ref),
                        "version": model.version,
                        "digest": model.digest,
                        "stale": model.stale,
                        "outputs": {
                            name: {"dtype": str(array.dtype), "shape": array.shape, "data": array.tolist()}
                            for name, array in outputs.items()
                        },
                    }
                )
                return
            print_line(f"{model.ref} version {model.version}{' (stale)' if model.stale else ''}")
            rows = [
                (name, array.dtype, "x".join(map(str, array.shape)) or "scalar", _preview(array))
                for name, array in outputs.items()
            ]
            print_table(("OUTPUT", "DTYPE", "SHAPE", "VALUES"), rows, empty="no outputs")

    with_client(url, run)


def _read(name: str, path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as exc:
        raise InputError(f"input {name}: {path} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, EOFError) as exc:
        raise InputError(f"input {name}: {path} is not a .npy file of numbers or text: {exc}") from exc
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {name}: {path} holds several arrays; name a .npy file with one")
    return array


def _write(directory: Path, outputs: dict[str, NDArray[Any]]) -> None:
    import numpy as np

    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, array in outputs.items():
            np.save(directory / f"{name.replace('/', '_')}.npy", array, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"the outputs cannot be written to {directory}: {exc}") from exc


def _preview(array: NDArray[Any]) -> str:
    flat = array.ravel()
    text = ", ".join(f"{value:.6g}" if array.dtype.kind == "f" else str(value) for value in flat[:_PREVIEW])
    return f"{text}, …" if flat.size > _PREVIEW else text
