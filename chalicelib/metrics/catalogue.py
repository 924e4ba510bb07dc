"""Every metric that there is. Dashboards, alerts and docs/observing.md are checked against this."""

from chalicelib.metrics import Counter, Gauge, Histogram, Metric

_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
         300.0)  # fmt: skip
_JOBS = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0)

# Requests.

REQUEST_SECONDS = Histogram(
    "openregistry_http_request_duration_seconds",
    "From a request's head to the last byte of its answer, by endpoint and class of status",
    ("route", "method", "status"),
    bounds=_LONG,
    cloudwatch=("route",),
)
RECEIVED = Counter(
    "openregistry_http_received_bytes_total",
    "Bytes of bodies that clients have sent",
    ("route",),
)
SENT = Counter(
    "openregistry_http_sent_bytes_total",
    "Bytes of bodies that were sent to clients; what they fetch from storage is not among them",
    ("route",),
)
CONNECTIONS = Gauge("openregistry_http_connections", "Clients' connections that are open")
IN_PROGRESS = Gauge("openregistry_http_requests_in_progress", "Requests that are not yet answered")
UPLOADS = Gauge(
    "openregistry_uploads_in_progress", "Requests that bring a blob's bytes at this moment"
)

# Storage.

STORAGE_SECONDS = Histogram(
    "openregistry_storage_call_duration_seconds",
    "Calls of object storage with their retries; for a folder, what waits for the disk. Outcomes:"
    " ok, refused (an answer that is no, like 404), failed",
    ("operation", "outcome"),
    bounds=_LONG,
    cloudwatch=(),
)
STORAGE_RETRIES = Counter(
    "openregistry_storage_retries_total",
    "Attempts at calls of object storage after the first",
    ("operation",),
)
PART_MEMORY = Gauge(
    "openregistry_part_memory_bytes", "Memory that parts on their way to a bucket hold"
)
PART_MEMORY_LIMIT = Gauge(
    "openregistry_part_memory_limit_bytes", "This process's share of OPENREGISTRY_PART_MEMORY"
)
SPILLED = Counter(
    "openregistry_parts_spilled_total", "Parts that went to a file since that memory was spent"
)

# Postgres.

DATABASE_SECONDS = Histogram(
    "openregistry_database_duration_seconds",
    "Statements by themselves, and transactions, from taking a connection to giving it back",
    ("kind",),
    bounds=_SHORT,
    cloudwatch=(),
)
DATABASE_FAILURES = Counter(
    "openregistry_database_failures_total",
    "Attempts that came to nothing, many of which are repeated. Reasons: connect (no connection"
    " could be made), lost (it broke), contention (deadlock or serialisation), refused",
    ("reason",),
    cloudwatch=(),
)
POOL_WAIT = Histogram(
    "openregistry_database_pool_wait_seconds",
    "How long callers waited for a connection that others had; who waits not is not counted",
    bounds=_SHORT,
)
POOL_TIMEOUTS = Counter(
    "openregistry_database_pool_timeouts_total", "Callers who waited for a connection in vain"
)
POOL = Gauge("openregistry_database_connections", "Connections to Postgres: used, idle", ("state",))
POOL_LIMIT = Gauge(
    "openregistry_database_connections_limit", "Connections that a process opens at most"
)
DATABASE_UP = Gauge(
    "openregistry_database_up", "Whether Postgres answered when it was last asked", shared=True
)
DATABASE_SIZE = Gauge(
    "openregistry_database_size_bytes", "What the database takes on disk", shared=True
)
DATABASE_ROWS = Gauge(
    "openregistry_database_rows",
    "Rows of the larger tables, as Postgres estimates them",
    ("table",),
    shared=True,
)

# What happens later.

JOBS = Gauge(
    "openregistry_jobs",
    "Jobs of all hosts: waiting (failing ones too), running, failing (to be tried again), dead"
    " (given up)",
    ("kind", "state"),
    shared=True,
    cloudwatch=("state",),
)
JOBS_AGE = Gauge(
    "openregistry_jobs_oldest_due_seconds",
    "For how long the oldest job has been due; 0: none is",
    ("kind",),
    shared=True,
    cloudwatch=(),
)
JOBS_DONE = Gauge(
    "openregistry_jobs_done_total",
    "Jobs done on all hosts since the registry was made",
    ("kind",),
    shared=True,
    total=True,
)
JOBS_FAILED = Gauge(
    "openregistry_jobs_failed_total", "Attempts that failed", ("kind",), shared=True, total=True
)
JOBS_GIVEN_UP = Gauge(
    "openregistry_jobs_given_up_total", "Jobs given up", ("kind",), shared=True, total=True
)
PROBE_STATE = Gauge(
    "openregistry_probe_state",
    "What the page /status says of now: 1 works, 0 fails, -1 unknown",
    shared=True,
)
JOB_SECONDS = Histogram(
    "openregistry_job_duration_seconds",
    "Attempts at jobs on this host. Outcomes: done, failed, given_up, postponed, lost (its lease)",
    ("kind", "outcome"),
    bounds=_JOBS,
)
COLLECTED = Counter(
    "openregistry_collected_total",
    "What collection removed: manifest, link (of a blob to a repository), blob, object",
    ("what",),
)
COLLECTED_BYTES = Counter(
    "openregistry_collected_bytes_total", "Size of the objects removed", cloudwatch=()
)

# Processes.

RESIDENT = Gauge("openregistry_process_resident_memory_bytes", "Memory that a process holds")
PROCESSOR = Gauge(
    "openregistry_process_cpu_seconds_total", "Processor time that a process took", total=True
)
FILES = Gauge("openregistry_process_open_fds", "Files and sockets that a process has open")
FILES_LIMIT = Gauge("openregistry_process_max_fds", "How many it may have open")
STARTED = Gauge(
    "openregistry_process_start_time_seconds", "When a process began, in seconds since 1970"
)
BUILD = Gauge(
    "openregistry_build_info", "1, for the version that runs", ("version", "python"), shared=True
)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
