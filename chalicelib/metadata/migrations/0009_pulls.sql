-- How often manifests were pulled, and when last. These rows are apart from what is pulled, so that
-- counting waits for no push and no push for it. Room is left in their pages, for rows that change
-- often to stay where they are.
CREATE TABLE manifest_pulls (
    repository_id bigint NOT NULL,
    digest bytea NOT NULL,
    pulls bigint NOT NULL,
    pulled_at timestamptz NOT NULL,
    PRIMARY KEY (repository_id, digest),
    FOREIGN KEY (repository_id, digest) REFERENCES manifests ON DELETE CASCADE
) WITH (fillfactor = 70);

CREATE TABLE tag_pulls (
    repository_id bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    pulls bigint NOT NULL,
    pulled_at timestamptz NOT NULL,
    PRIMARY KEY (repository_id, name),
    FOREIGN KEY (repository_id, name) REFERENCES tags ON DELETE CASCADE
) WITH (fillfactor = 70);

-- Of a repository: outlives its manifests and tags.
CREATE TABLE repository_pulls (
    repository_id bigint PRIMARY KEY REFERENCES repositories ON DELETE CASCADE,
    pulls bigint NOT NULL,
    pulled_at timestamptz NOT NULL
) WITH (fillfactor = 70);
