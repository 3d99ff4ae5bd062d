"""Metric points, series and summaries as messages and back. Columns pass as they are: the service checks them."""

from __future__ import annotations

from modelbox._proto.modelbox import v1 as pb
from modelbox._wire.values import member, pack_time, unpack_time
from modelbox.tracking import MetricColumns, MetricKind, MetricSummary, SampledSeries


def pack_columns(value: MetricColumns) -> pb.MetricColumns:
    """As a message."""
    return pb.MetricColumns(
        object=value.object,
        keys=list(value.keys),
        key_index=value.key_index,
        steps=value.steps,
        times_us=value.times_us,
        values=value.values,
        kinds=value.kinds,
        payloads=list(value.payloads),
    )


def unpack_columns(message: pb.MetricColumns) -> MetricColumns:
    """From a message."""
    return MetricColumns(
        object=message.object,
        keys=tuple(message.keys),
        key_index=message.key_index,
        steps=message.steps,
        times_us=message.times_us,
        values=message.values,
        kinds=message.kinds,
        payloads=tuple(message.payloads),
    )


def pack_series(value: MetricColumns) -> pb.SeriesColumns:
    """A part of one series as a message; its object and key stay behind."""
    return pb.SeriesColumns(
        steps=value.steps,
        times_us=value.times_us,
        values=value.values,
        kinds=value.kinds,
        payloads=list(value.payloads),
    )


def unpack_series(message: pb.SeriesColumns, object_id: str, key: str) -> MetricColumns:
    """From a message."""
    return MetricColumns(
        object=object_id,
        keys=(key,),
        steps=message.steps,
        times_us=message.times_us,
        values=message.values,
        kinds=message.kinds,
        payloads=tuple(message.payloads),
    )


def pack_summary(value: MetricSummary, message: type[pb.MetricSummary] = pb.MetricSummary) -> pb.MetricSummary:
    """As a message, of another codec's class if need be."""
    return message(
        object=value.object,
        key=value.key,
        kind=value.kind,
        count=value.count,
        min=value.min,
        max=value.max,
        latest=value.latest,
        latest_step=value.latest_step,
        latest_at_us=pack_time(value.latest_at),
        first_step=value.first_step,
    )


def unpack_summary(message: pb.MetricSummary) -> MetricSummary:
    """From a message."""
    return MetricSummary(
        object=message.object,
        key=message.key,
        kind=member(MetricKind, message.kind, "a kind of metric"),
        count=message.count,
        min=message.min,
        max=message.max,
        latest=message.latest,
        latest_step=message.latest_step,
        latest_at=unpack_time(message.latest_at_us),
        first_step=message.first_step,
    )


def pack_sampled(value: SampledSeries) -> pb.SampleSeriesResponse:
    """As an answer."""
    return pb.SampleSeriesResponse(
        first_steps=value.first_steps,
        last_steps=value.last_steps,
        counts=value.counts,
        mins=value.mins,
        maxs=value.maxs,
        means=value.means,
        lasts=value.lasts,
    )


def unpack_sampled(message: pb.SampleSeriesResponse) -> SampledSeries:
    """From an answer."""
    return SampledSeries(
        first_steps=message.first_steps,
        last_steps=message.last_steps,
        counts=message.counts,
        mins=message.mins,
        maxs=message.maxs,
        means=message.means,
        lasts=message.lasts,
    )
