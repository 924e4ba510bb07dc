-- The status page: what the registry found when it last tried itself as a client would.
CREATE TABLE status_probes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    -- Milliseconds of each step that worked; null where it failed, or one before it did.
    sign_in real,
    push real,
    pull real,
    -- The step that failed, the status of its answer (0: there was none) and the code in it; and the
    -- whole sentence, which is for whoever runs the registry.
    failed text CHECK (failed IN ('sign-in', 'push', 'pull')),
    status integer NOT NULL DEFAULT 0,
    code text NOT NULL DEFAULT '',
    error text NOT NULL DEFAULT ''
);
CREATE INDEX status_probes_by_time ON status_probes (at);

-- Each day of UTC, made of its probes while they are kept: how often a step was tried and failed, and
-- of those that worked the milliseconds of the median and of the 95th percentile.
CREATE TABLE status_days (
    day date NOT NULL,
    step text NOT NULL,
    tried integer NOT NULL,
    failed integer NOT NULL,
    median real,
    percentile_95 real,
    PRIMARY KEY (day, step)
);

-- By whom the registry tries itself, where it has accounts: a robot, and its access token, sealed.
CREATE TABLE status_robot (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    token bytea NOT NULL
);

-- Not at once: a registry that was just made, or upgraded, may not serve yet.
INSERT INTO schedules (kind, due_at) VALUES ('status.probe', now() + interval '5 minutes')
ON CONFLICT DO NOTHING;
