"""The gateway's metrics. Labels are small fixed sets: never a user, tenant or adapter."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("octavo_gateway_requests", "Generation requests that ended", ["entry", "status_class"])
SHED = Counter("octavo_gateway_shed", "Generation requests shed before any work", ["reason"])
IN_FLIGHT = Gauge("octavo_gateway_in_flight", "Generation requests in flight")
ATTEMPTS = Counter("octavo_gateway_attempts_lost", "Attempts that were not the last of their request", ["reason"])
USAGE_LOST = Counter("octavo_gateway_usage_lost_requests", "Requests whose use could not be told to be counted")
TTFT = Histogram(
    "octavo_gateway_ttft_seconds",
    "From a request's arrival to its first text, by the tier where the adapter was found",
    ["tier"],
    buckets=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2),
)
