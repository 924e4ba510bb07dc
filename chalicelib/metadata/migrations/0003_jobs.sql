-- What happens later. A row is written in the transaction that causes it, and goes once it is done.
CREATE TABLE jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    -- Of jobs of one kind with one subject, the next begins when the one before has ended; '' asks
    -- for no order.
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
CREATE INDEX jobs_by_due ON jobs (kind, due_at) WHERE subject = '' AND dead_at IS NULL;
-- First of a subject comes the job that was taken, then the oldest.
CREATE INDEX jobs_by_subject ON jobs (kind, subject, taken DESC, id)
    WHERE subject <> '' AND dead_at IS NULL;
-- One at a time, also where the transaction that wrote an older job commits after a newer was taken.
CREATE UNIQUE INDEX jobs_taken_by_subject ON jobs (kind, subject) WHERE taken AND subject <> '';
CREATE INDEX jobs_dead ON jobs (kind, id) WHERE dead_at IS NOT NULL;
-- Rows come and go: what is dead in the indexes is in the way of whoever looks for the oldest.
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);

-- When what recurs is due next.
CREATE TABLE schedules (
    kind text PRIMARY KEY,
    due_at timestamptz NOT NULL
);

-- What workers have done so far, for those who watch. Each adds to it now and then, so that a worker
-- that is killed leaves out what it did in its last seconds.
CREATE TABLE job_totals (
    kind text PRIMARY KEY,
    done bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    given_up bigint NOT NULL DEFAULT 0
);
