-- Who is told of what happens: of one repository, or of all in an account's namespace. Secrets are
-- sealed with a key that is derived from SECRET_KEY.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    account_id bigint REFERENCES accounts ON DELETE CASCADE,
    repository_id bigint REFERENCES repositories ON DELETE CASCADE,
    url text NOT NULL,
    events text[] NOT NULL,
    format text NOT NULL CHECK (format IN ('cloudevents', 'docker')),
    secret bytea NOT NULL,
    -- The secret before, which signs too until then.
    former_secret bytea,
    former_until timestamptz,
    enabled boolean NOT NULL DEFAULT true,
    -- Why the registry disabled it by itself; '' where a person did.
    disabled_reason text NOT NULL DEFAULT '',
    disabled_at timestamptz,
    -- Since when every attempt has failed, how many did, and until when the next one waits.
    failing_since timestamptz,
    failures integer NOT NULL DEFAULT 0,
    rests_until timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(account_id, repository_id) = 1),
    CHECK (enabled = (disabled_at IS NULL))
);
CREATE INDEX webhooks_by_account ON webhooks (account_id, id) WHERE account_id IS NOT NULL;
CREATE INDEX webhooks_by_repository ON webhooks (repository_id, id) WHERE repository_id IS NOT NULL;

-- An event on its way to one webhook, and kept for a while after. Its id is the event's, by which a
-- receiver knows what it has had already.
CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    webhook_id uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    event jsonb NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    -- When it happened, and when it was last to be delivered: then, or when a person asked for it.
    created_at timestamptz NOT NULL DEFAULT now(),
    begun_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, number);
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (begun_at);

-- Each attempt: what was sent and what came back, cut short.
CREATE TABLE webhook_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id uuid NOT NULL REFERENCES webhook_deliveries ON DELETE CASCADE,
    at timestamptz NOT NULL,
    seconds double precision NOT NULL,
    request text NOT NULL,
    -- Null where no answer came; `error` says why, or what was wrong with it.
    status integer,
    answer text NOT NULL,
    error text NOT NULL
);
CREATE INDEX webhook_attempts_by_delivery ON webhook_attempts (delivery_id, id);

-- What a signed message from elsewhere starts: a job for an account or for one repository.
CREATE TABLE triggers (
    id uuid PRIMARY KEY,
    account_id bigint REFERENCES accounts ON DELETE CASCADE,
    repository_id bigint REFERENCES repositories ON DELETE CASCADE,
    starts text NOT NULL,
    secret bytea NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz,
    CHECK (num_nonnulls(account_id, repository_id) = 1)
);
CREATE INDEX triggers_by_account ON triggers (account_id, id) WHERE account_id IS NOT NULL;
CREATE INDEX triggers_by_repository ON triggers (repository_id, id) WHERE repository_id IS NOT NULL;

-- Messages that have started something: each does so once.
CREATE TABLE trigger_messages (
    trigger_id uuid NOT NULL REFERENCES triggers ON DELETE CASCADE,
    message text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (trigger_id, message)
);
CREATE INDEX trigger_messages_by_expiry ON trigger_messages (expires_at);
