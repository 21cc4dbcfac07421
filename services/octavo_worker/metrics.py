"""What a worker counts. Labels are tiers and error codes only, never an id of a user or an adapter."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

LOADS = Counter("octavo_worker_adapter_loads", "Adapters loaded, by the tier that they were found in", ["tier"])
LOAD_FAILURES = Counter("octavo_worker_adapter_load_failures", "Adapter loads that failed, by error code", ["code"])
LOAD_SECONDS = Histogram(
    "octavo_worker_adapter_load_seconds", "From the start of a load until its end", ["tier"], buckets=_SECONDS
)
REQUESTS = Counter("octavo_worker_requests", "Attempts that ended, by how", ["outcome"])
TOKENS = Counter("octavo_worker_tokens", "Tokens generated")
RUNNING = Gauge("octavo_worker_running_sequences", "Sequences in the running batch")
WAITING = Gauge("octavo_worker_waiting_sequences", "Sequences that wait for their turn or their adapter")
PAGES_FREE = Gauge("octavo_worker_free_pages", "Arena pages that hold neither KV nor adapters")
PAGES = Gauge("octavo_worker_pages", "Arena pages")
