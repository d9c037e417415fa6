"""What retention and eviction deleted: wire-api 5.3."""

from __future__ import annotations

import datetime

from aiohttp import web

from queue_server.domain.errors import BadRequest
from queue_server.domain.retention import RetentionType
from queue_server.domain.segment import wire_time
from queue_server.http import wire
from queue_server.http.request import query_time
from queue_server.http.state import STATE
from queue_server.storage import retention

# A chart has no room for more.
_POINTS_MAX = 120

_DEFAULT_RANGE = datetime.timedelta(hours=1)

_FIELDS = {
    RetentionType.RETENTION: "retentionMsgs",
    RetentionType.COMPLETED: "completedRetentionMsgs",
    RetentionType.MAX_WAIT_TIME: "evictionMsgs",
    RetentionType.TTL: "evictionMsgs",
}


async def history(request: web.Request) -> web.Response:
    """Sums by bucket from `from` to `to`, by default over the last hour.

    Buckets in which nothing was deleted are left out.
    """
    end = query_time(request, "to") or datetime.datetime.now(datetime.UTC)
    start = query_time(request, "from") or end - _DEFAULT_RANGE
    if start > end:
        raise BadRequest("from must not be later than to")
    bucket_minutes = max(1, int((end - start).total_seconds()) // 60 // _POINTS_MAX)
    points = await retention.history(request.app[STATE].reads, start, end, bucket_minutes * 60)
    totals = _sums()
    series: dict[datetime.datetime, dict[str, int]] = {}
    for point in points:
        for sums in (totals, series.setdefault(point.bucket, _sums())):
            sums[_FIELDS[point.type]] += point.message_count
            sums["totalMsgs"] += point.message_count
            sums["eventCount"] += point.event_count
    answer = {
        "timeRange": {"from": wire_time(start), "to": wire_time(end)},
        "bucketMinutes": bucket_minutes,
        "pointCount": len(series),
        "series": [{"bucket": wire_time(bucket), **sums} for bucket, sums in series.items()],
        "totals": totals,
    }
    return web.Response(body=wire.encoder.encode(answer), content_type="application/json")


def _sums() -> dict[str, int]:
    return dict.fromkeys([*_FIELDS.values(), "totalMsgs", "eventCount"], 0)
