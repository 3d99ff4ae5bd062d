"""MetricService over gRPC: decode, call the service, encode."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire import metrics as wire
from modelbox._wire.values import given
from modelbox.runtime.grpc.calls import Streaming
from modelbox.runtime.services.metrics import MetricService

__all__ = ("MetricAdapter",)


class MetricAdapter(Streaming, pb.MetricServiceBase):
    """See ``protos/modelbox/v1/metrics.proto``.

    Args:
        metrics: The service.
        messages: The classes that frequent calls are answered with; for `Boundary.direct_google` those of its codec.
    """

    def __init__(self, metrics: MetricService, messages: Any = pb) -> None:
        self._metrics = metrics
        self._messages = messages

    async def log_metrics(self, message: pb.LogMetricsRequest) -> pb.LogMetricsResponse:
        """See the proto."""
        stored, repeated = await self._metrics.log([wire.unpack_columns(one) for one in message.columns])
        answer: pb.LogMetricsResponse = self._messages.LogMetricsResponse(stored=stored, repeated_points=repeated)
        return answer

    def log_metrics_soon(self, message: pb.LogMetricsRequest, done: Callable[[Any], None]) -> bool:
        """`log_metrics` for `Boundary.soon_google`."""

        def logged(outcome: tuple[int, int] | Exception) -> None:
            if isinstance(outcome, Exception):
                done(outcome)
            else:
                stored, repeated = outcome
                done(self._messages.LogMetricsResponse(stored=stored, repeated_points=repeated))

        return self._metrics.log_soon([wire.unpack_columns(one) for one in message.columns], logged)

    async def get_metric_summaries(self, message: pb.GetMetricSummariesRequest) -> pb.GetMetricSummariesResponse:
        """See the proto."""
        messages = self._messages
        summaries = await self._metrics.summaries(message.objects, message.keys)
        answer: pb.GetMetricSummariesResponse = messages.GetMetricSummariesResponse(
            summaries=[wire.pack_summary(one, messages.MetricSummary) for one in summaries]
        )
        return answer

    async def read_series(self, message: pb.ReadSeriesRequest) -> AsyncGenerator[pb.SeriesColumns, None]:
        """See the proto."""
        parts = self._metrics.read_series(
            message.object,
            message.key,
            from_step=message.from_step,
            to_step=message.to_step,
        )
        async for part in parts:
            yield wire.pack_series(part)

    async def sample_series(self, message: pb.SampleSeriesRequest) -> pb.SampleSeriesResponse:
        """See the proto."""
        sampled = await self._metrics.sample_series(
            message.object,
            message.key,
            from_step=given(message, "from_step"),
            to_step=given(message, "to_step"),
            buckets=message.buckets,
        )
        return wire.pack_sampled(sampled)
