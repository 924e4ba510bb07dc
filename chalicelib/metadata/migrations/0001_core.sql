-- Digests are bytes: the multihash code of the algorithm (0x12 SHA-256, 0x13 SHA-512), then the hash.
-- Names sort by bytes, as the specification's lists do.

CREATE TABLE repositories (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A blob exists once its digest has been verified.
CREATE TABLE blobs (
    digest bytea PRIMARY KEY,
    size bigint NOT NULL CHECK (size >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Where its bytes are. Keys are random and never reused. A copy is missing once a read found no
-- object there: the blob is then as good as absent, until it is pushed again or the object is back.
CREATE TABLE blob_copies (
    digest bytea NOT NULL REFERENCES blobs ON DELETE CASCADE,
    store text NOT NULL,
    key text NOT NULL,
    missing boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (digest, store),
    UNIQUE (store, key)
);

-- The border: a blob is read, mounted and deleted through a repository that links it.
CREATE TABLE repository_blobs (
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest bytea NOT NULL REFERENCES blobs,
    linked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, digest)
);
CREATE INDEX repository_blobs_by_digest ON repository_blobs (digest);

CREATE TABLE manifests (
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest bytea NOT NULL,
    media_type text NOT NULL,
    artifact_type text NOT NULL,
    subject bytea,
    payload bytea NOT NULL,
    annotations text NOT NULL,
    pushed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, digest)
);
ALTER TABLE manifests ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX manifests_by_subject ON manifests (repository_id, subject, digest) WHERE subject IS NOT NULL;

-- What a manifest names. `blob` and `child` repeat `digest` where it exists in the repository, so
-- that it cannot be deleted from under the manifest; both are null where it was admitted as
-- missing, until it arrives.
CREATE TABLE manifest_references (
    repository_id bigint NOT NULL,
    manifest bytea NOT NULL,
    digest bytea NOT NULL,
    is_manifest boolean NOT NULL,
    blob bytea,
    child bytea,
    PRIMARY KEY (repository_id, manifest, digest, is_manifest),
    FOREIGN KEY (repository_id, manifest) REFERENCES manifests ON DELETE CASCADE,
    FOREIGN KEY (repository_id, blob) REFERENCES repository_blobs,
    FOREIGN KEY (repository_id, child) REFERENCES manifests
);
CREATE INDEX manifest_references_by_blob ON manifest_references (repository_id, blob) WHERE blob IS NOT NULL;
CREATE INDEX manifest_references_by_child ON manifest_references (repository_id, child) WHERE child IS NOT NULL;
CREATE INDEX manifest_references_missing ON manifest_references (repository_id, digest)
    WHERE blob IS NULL AND child IS NULL;

CREATE TABLE tags (
    repository_id bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, name),
    FOREIGN KEY (repository_id, digest) REFERENCES manifests ON DELETE CASCADE
);
CREATE INDEX tags_by_digest ON tags (repository_id, digest);

-- Every move of a tag; a null digest is its deletion.
CREATE TABLE tag_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL,
    digest bytea,
    subject text NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tag_history_by_tag ON tag_history (repository_id, name, id);

CREATE TYPE upload_state AS ENUM ('open', 'committing', 'committed', 'cancelled');

-- One upload. A request that brings bytes raises its epoch first; only the newest epoch may write.
-- The row outlives the upload until every capability for it has expired.
CREATE TABLE uploads (
    id uuid PRIMARY KEY,
    repository text NOT NULL,
    state upload_state NOT NULL DEFAULT 'open',
    epoch integer NOT NULL DEFAULT 0,
    algorithm text NOT NULL,
    received bigint NOT NULL DEFAULT 0,
    hash_state bytea,
    staged jsonb,
    next_part integer NOT NULL DEFAULT 1,
    digest bytea,
    verified boolean NOT NULL DEFAULT false,
    expires_at timestamptz NOT NULL
);
CREATE INDEX uploads_by_expiry ON uploads (expires_at);

-- Every key that a request of an upload was given, recorded before its first byte is staged.
CREATE TABLE upload_keys (
    key text PRIMARY KEY,
    upload_id uuid NOT NULL REFERENCES uploads ON DELETE CASCADE
);
CREATE INDEX upload_keys_by_upload ON upload_keys (upload_id);
