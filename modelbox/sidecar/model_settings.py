"""What is set for one model alone: tables ``[model."acme/ranker@prod"]`` of the sidecar's file.

Owns `ModelSettings`, how such tables are read, and `ModelServing`, what comes out for one reference: of all that is
set, the reference's own table wins over its model's, and that over the sidecar's settings. All problems of all tables
are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from modelbox._serving.settings import BOOL, Kind, Settings, number, setting
from modelbox.errors import RefError
from modelbox.loader.runner import Mode, RunnerOptions
from modelbox.loader.session import SessionOptions
from modelbox.loader.settings import LoadOptions
from modelbox.refs import ModelRef, shown

if TYPE_CHECKING:
    from modelbox.sidecar.config import SidecarConfig

__all__ = (
    "BATCHING",
    "DELAY_MS",
    "MAX_BATCH",
    "MAX_QUEUE",
    "MODE",
    "PROVIDERS",
    "THREADS_INSIDE",
    "THREADS_OF_POOL",
    "TIMEOUT_S",
    "WARM_UP_S",
    "ModelServing",
    "ModelSettings",
    "Tables",
    "choice",
    "model_settings_table",
    "model_settings_toml",
    "providers_of",
    "read_model_tables",
    "serving_of",
    "table_problems",
    "words",
)

_MODES = ("auto", "inline", "pool")
_BATCHING = ("auto", "on", "off")


def words(value: Any) -> list[str]:
    """Text separated by blanks or commas, or a list of texts."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise ValueError


def choice(names: tuple[str, ...]) -> Kind:
    """One of ``names``; true and false count as on and off."""

    def read(value: Any) -> str:
        if isinstance(value, bool):
            value = "on" if value else "off"
        if not isinstance(value, str) or value.lower() not in names:
            raise ValueError
        return value.lower()

    return Kind(read=read, allowed=", ".join(names))


def _read_providers(value: Any) -> tuple[str, ...]:
    names = tuple(words(value))
    if not names:
        raise ValueError
    return tuple(name if name.endswith("ExecutionProvider") else f"{name}ExecutionProvider" for name in names)


MAX_QUEUE = number(0, 1_000_000, "calls", whole=True)
MAX_BATCH = number(1, 65_536, "rows", whole=True)
DELAY_MS = number(0, 10_000, "milliseconds", whole=False)
BATCHING = choice(_BATCHING)
TIMEOUT_S = number(0, 86_400, "seconds", whole=False)
MODE = choice(_MODES)
THREADS_OF_POOL = number(0, 1024, "threads", whole=True)
THREADS_INSIDE = number(1, 256, "threads", whole=True)
PROVIDERS = Kind(read=_read_providers, allowed="names of execution providers, such as CPU or CUDA")
WARM_UP_S = number(0.001, 3600, "seconds", whole=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What one table sets; None for what it leaves to the others."""

    max_queue: int | None = setting(None, MAX_QUEUE, "Calls that may wait; more are refused as busy.")
    max_batch: int | None = setting(None, MAX_BATCH, "Most rows in one run of calls that were joined.")
    max_delay_ms: float | None = setting(
        None, DELAY_MS, "How long the first call of a batch waits for others; 0 for the same turn of the loop."
    )
    batching: str | None = setting(
        None, BATCHING, "Whether calls are joined: auto lets the metadata or the warm-up decide."
    )
    default_timeout_s: float | None = setting(None, TIMEOUT_S, "Limit of calls that bring none; 0 for none.")
    priority: int | None = setting(
        None, number(1, 1000, "", whole=True), "Of calls that bring none; 1 goes first, 10 is what others count as."
    )
    prediction_cache: bool | None = setting(
        None, BOOL, "Whether answers are kept in the prediction cache, if prediction_cache_mb makes one."
    )
    mode: str | None = setting(None, MODE, "Where runs happen: inline on the event loop, in threads, or by length.")
    threads: int | None = setting(None, THREADS_OF_POOL, "Threads of the model's pool; 0: by the quota of processors.")
    intra_op_threads: int | None = setting(None, THREADS_INSIDE, "Threads inside one run.")
    providers: tuple[str, ...] | None = setting(
        None, PROVIDERS, "onnxruntime's execution providers, best first; all must be installed."
    )
    warm_up_timeout_s: float | None = setting(
        None, WARM_UP_S, "A version whose first runs take longer is refused, and the one before goes on."
    )
    golden: bool | None = setting(
        None, BOOL, "Whether golden inputs and outputs that a version brings must be reproduced by it."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServing:
    """How one reference is served.

    Attributes:
        options: How it is opened and run.
        max_queue: Calls that may wait.
        default_timeout_s: Of calls that bring no limit; None for none.
        priority: Of calls that bring none; 0 for the default.
        caches: Whether its answers are kept, where there is a prediction cache.
    """

    options: LoadOptions = field(default_factory=LoadOptions)
    max_queue: int = 1000
    default_timeout_s: float | None = None
    priority: int = 0
    caches: bool = True


_SETTINGS = Settings(ModelSettings, prefix="", path_variable="")
Tables = tuple[tuple[str, ModelSettings], ...]


def read_model_tables(tables: object, problems: list[str]) -> Tables:
    """The tables below ``[model]``, by reference or by model.

    Args:
        tables: As they were parsed.
        problems: Gets one line for every problem.
    """
    if not isinstance(tables, Mapping):
        problems.append(f'model = {shown(tables)}: expected tables such as [model."acme/ranker@prod"]')
        return ()
    found: list[tuple[str, ModelSettings]] = []
    for name, table in tables.items():
        title = f'[model."{name}"]'
        try:
            ref = ModelRef.parse(name)
        except RefError as exc:
            problems.append(f"{title}: {exc}")
            continue
        if not isinstance(table, Mapping):
            problems.append(f'{title}: expected a table (the name belongs into quotation marks: [model."acme/ranker"])')
            continue
        values = _SETTINGS.check_all(table, lambda key, title=title: f"{key} in {title}", problems)  # type: ignore[misc]
        key = str(ref) if "@" in name else ref.path
        if any(key == other for other, _ in found):
            problems.append(f"{title}: there are two tables for {key}")
        found.append((key, ModelSettings(**values)))
    return tuple(found)


def table_problems(config: SidecarConfig) -> list[str]:
    """What does not fit together between the tables and the rest of the settings."""
    problems = []
    names = {name for ref in config.models for name in (str(ref), ref.path)}
    for name, table in config.model:
        if name not in names and not config.repository_control:
            problems.append(
                f'[model."{name}"]: no such model is served, and repository_control = false: expected one of '
                f"{', '.join(map(str, config.models)) or 'models, which is empty'}"
            )
        if table.prediction_cache and not config.prediction_cache_mb:
            problems.append(
                f'prediction_cache in [model."{name}"] = true: expected prediction_cache_mb above 0 beside it, the '
                "memory of the cache"
            )
    return problems


def serving_of(config: SidecarConfig, ref: ModelRef) -> ModelServing:
    """How ``ref`` is served under ``config``."""
    tables = dict(config.model)
    chosen: dict[str, Any] = {}
    for table in (tables.get(ref.path), tables.get(str(ref))):
        if table is not None:
            chosen |= {f.name: value for f in fields(table) if (value := getattr(table, f.name)) is not None}

    def get(name: str) -> Any:
        return chosen.get(name, getattr(config, name))

    return ModelServing(
        options=LoadOptions(
            session=SessionOptions(providers=get("providers"), intra_op_threads=get("intra_op_threads")),
            runner=RunnerOptions(
                mode=Mode(get("mode")),
                max_batch=get("max_batch"),
                max_delay_s=get("max_delay_ms") / 1e3,
                threads=get("threads"),
            ),
            batching={"auto": None, "on": True, "off": False}[get("batching")],
            golden=get("golden"),
            tensors=False,
            warm_up_timeout_s=get("warm_up_timeout_s"),
        ),
        max_queue=get("max_queue"),
        default_timeout_s=get("default_timeout_s") or None,
        priority=chosen.get("priority", 0),
        # Off for one model only where somebody says so: the cache itself is off by default.
        caches=chosen.get("prediction_cache", True),
    )


def model_settings_table() -> str:
    """The settings of one model as Markdown."""
    lines = ["| setting | allowed | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {allowed} | {text} |" for name, allowed, text in _SETTINGS.rows()]
    return "\n".join(lines)


def model_settings_toml() -> str:
    """An example of a table, commented out."""
    lines = [
        "",
        "# For one reference, or (without the part from @ on) for all references to a model. What is not set here is",
        "# as above.",
        '# [model."acme/ranker@prod"]',
    ]
    lines += [f"#   {name}: {allowed}. {text}" for name, allowed, text in _SETTINGS.rows()]
    return "\n".join(lines) + "\n"


def providers_of(config: SidecarConfig) -> tuple[str, ...]:
    """All execution providers that anything names."""
    named = [*config.providers]
    for _, table in config.model:
        named += table.providers or ()
    return tuple(dict.fromkeys(named))
