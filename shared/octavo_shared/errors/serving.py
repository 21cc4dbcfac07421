"""What ends a request that was in order: something is away, busy, lost or late."""

from octavo_shared.errors.tree import OctavoError


class NoWorker(OctavoError):
    code, http_status, is_retryable = "no_worker", 503, True

    def __init__(self, problem: str = "no worker can serve this request now") -> None:
        super().__init__(problem)


class BaseNotServed(NoWorker):
    code = "base_not_served"

    def __init__(self, adapter_base: str, served_bases: str) -> None:
        super().__init__(f"the revision is for base {adapter_base}, which no worker has; served here: {served_bases}")
        self.fields = {"adapter_base": adapter_base, "served_bases": served_bases}


class AdapterUnavailable(OctavoError):
    code, http_status, is_retryable = "adapter_unavailable", 503, True

    def __init__(self, problem: str) -> None:
        super().__init__(f"the adapter could not be loaded: {problem}")


class DependencyUnavailable(OctavoError):
    code, http_status, is_retryable = "dependency_unavailable", 503, True

    def __init__(self, dependency: str) -> None:
        super().__init__(f"{dependency} does not answer", dependency=dependency)


class WorkerLost(OctavoError):
    code, http_status, is_retryable = "worker_lost", 503, True

    def __init__(self, attempts: int) -> None:
        super().__init__(f"the worker was lost and no other could go on ({attempts} attempts)", attempts=attempts)


class DeadlineExceeded(OctavoError):
    code, http_status, is_retryable = "deadline_exceeded", 504, True

    def __init__(self, budget_ms: int) -> None:
        super().__init__(f"the time budget of {budget_ms} ms is used up", budget_ms=budget_ms)
