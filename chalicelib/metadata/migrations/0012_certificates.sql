-- The registry's own certificates, by ACME (RFC 8555). Private keys are sealed.
CREATE TABLE acme_accounts (
    directory text PRIMARY KEY,
    url text NOT NULL,
    key bytea NOT NULL
);

-- What a certificate authority asks for at /.well-known/acme-challenge/TOKEN, of any host.
CREATE TABLE acme_challenges (
    token text PRIMARY KEY,
    key_authorization text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The last one for each set of names at each authority.
CREATE TABLE certificates (
    id uuid PRIMARY KEY,
    directory text NOT NULL,
    names text[] NOT NULL,
    chain text NOT NULL,
    key bytea NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    UNIQUE (directory, names)
);
