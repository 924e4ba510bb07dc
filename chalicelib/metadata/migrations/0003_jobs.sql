-- What happens later. A row is written in the transaction that causes it, and goes once it is done.
CREATE TABLE jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    -- Of jobs with one subject the next begins when the one before has ended; '' asks for no order.
    subject text NOT NULL DEFAULT '',
    data jsonb NOT NULL,
    -- When it may begin. A worker that takes it puts this off for as long as its lease lasts.
    due_at timestamptz NOT NULL DEFAULT now(),
    -- How often it was begun. Whoever ends it says which attempt that was: a worker that lost its
    -- lease ends nothing. `tries` is that number since a person last had it retried.
    attempt integer NOT NULL DEFAULT 0,
    tries integer NOT NULL DEFAULT 0,
    -- Whether a worker has it, or had it when it was killed; then `due_at` is the end of its lease.
    taken boolean NOT NULL DEFAULT false,
    error text NOT NULL DEFAULT '',
    -- Given up: kept until a person retries or drops it.
    dead_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX jobs_by_due ON jobs (due_at) WHERE dead_at IS NULL;
CREATE INDEX jobs_by_subject ON jobs (subject, id) WHERE subject <> '' AND dead_at IS NULL;
CREATE INDEX jobs_by_kind ON jobs (kind, id);

-- When what recurs is due next.
CREATE TABLE schedules (
    kind text PRIMARY KEY,
    due_at timestamptz NOT NULL
);
