-- Uploads whose parts clients send to object storage themselves.
CREATE TABLE direct_uploads (
    upload_id uuid PRIMARY KEY REFERENCES uploads ON DELETE CASCADE,
    subject text NOT NULL,
    key text NOT NULL,
    multipart_id text NOT NULL,
    part_size bigint NOT NULL,
    -- What the client said that it would send, where it knew.
    digest bytea,
    size bigint,
    held_until timestamptz NOT NULL,
    -- Since it was committed: the states at the parts' ends, one after another; how many pieces
    -- there are to be verified, and how many of them and of their bytes have been.
    states bytea,
    pieces integer,
    pieces_verified integer NOT NULL DEFAULT 0,
    bytes_verified bigint NOT NULL DEFAULT 0,
    -- Why it has become no blob.
    refusal jsonb
);

-- The states that a client has told at the ends of parts, for it to know them again.
CREATE TABLE direct_states (
    upload_id uuid NOT NULL REFERENCES direct_uploads ON DELETE CASCADE,
    part integer NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (upload_id, part)
);

-- An upload that was cut is looked for by one of these.
CREATE INDEX direct_uploads_by_digest ON direct_uploads (digest) WHERE digest IS NOT NULL;
CREATE INDEX direct_states_by_first ON direct_states (state) WHERE part = 1;
