-- Collection: what nothing names any more goes once its grace is over. What is written down is since
-- when, at the earliest, nothing may have named it; how long the grace is, the collector decides. Null
-- once a collector found it named. Clocks within a transaction: it may have waited for others.

ALTER TABLE repository_blobs ADD COLUMN unreferenced_since timestamptz DEFAULT now();
ALTER TABLE repository_blobs ALTER COLUMN unreferenced_since SET DEFAULT clock_timestamp();
CREATE INDEX repository_blobs_unreferenced ON repository_blobs (unreferenced_since)
    WHERE unreferenced_since IS NOT NULL;

-- A manifest is named by tags, by the indexes that hold it, and by its subject while that is there.
-- `had_subject`: the subject was there at some time. Once it is gone, its referrers go too.
ALTER TABLE manifests
    ADD COLUMN unreferenced_since timestamptz DEFAULT now(),
    ADD COLUMN had_subject boolean NOT NULL DEFAULT false;
ALTER TABLE manifests ALTER COLUMN unreferenced_since SET DEFAULT clock_timestamp();
UPDATE manifests m SET had_subject = true WHERE EXISTS
    (SELECT FROM manifests s WHERE s.repository_id = m.repository_id AND s.digest = m.subject);
CREATE INDEX manifests_unreferenced ON manifests (unreferenced_since) WHERE unreferenced_since IS NOT NULL;
CREATE INDEX manifests_unreferenced_referrers ON manifests (unreferenced_since)
    WHERE unreferenced_since IS NOT NULL AND had_subject;

-- Blobs that lost a link, to be looked at. Rows are only ever added by whoever removes a link, so that
-- nobody waits for the blob's own row while holding the link's.
CREATE TABLE unlinked_blobs (
    digest bytea NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (digest, since)
);
CREATE INDEX unlinked_blobs_by_time ON unlinked_blobs (since);
INSERT INTO unlinked_blobs (digest, since) SELECT digest, now() FROM blobs b
    WHERE NOT EXISTS (SELECT FROM repository_blobs l WHERE l.digest = b.digest);

-- Objects of blobs that are gone, written in the transaction that removes the blob: they are deleted
-- after it, whatever happens in between.
CREATE TABLE doomed_objects (
    store text NOT NULL,
    key text NOT NULL,
    size bigint NOT NULL,
    doomed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (store, key)
);
CREATE INDEX doomed_objects_by_time ON doomed_objects (store, doomed_at);

-- Rows are locked in the order of their digests, as all do who lock several.
CREATE FUNCTION note_unreferenced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH held AS (
        SELECT m.repository_id, m.digest FROM manifests m
        JOIN gone g ON g.repository_id = m.repository_id AND g.child = m.digest
        ORDER BY m.repository_id, m.digest FOR NO KEY UPDATE OF m)
    UPDATE manifests m SET unreferenced_since = clock_timestamp() FROM held h
        WHERE m.repository_id = h.repository_id AND m.digest = h.digest;
    WITH held AS (
        SELECT l.repository_id, l.digest FROM repository_blobs l
        JOIN gone g ON g.repository_id = l.repository_id AND g.blob = l.digest
        ORDER BY l.repository_id, l.digest FOR NO KEY UPDATE OF l)
    UPDATE repository_blobs l SET unreferenced_since = clock_timestamp() FROM held h
        WHERE l.repository_id = h.repository_id AND l.digest = h.digest;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_references_note AFTER DELETE ON manifest_references
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_unreferenced();

CREATE FUNCTION note_untagged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE manifests SET unreferenced_since = clock_timestamp()
        WHERE repository_id = OLD.repository_id AND digest = OLD.digest;
    RETURN NULL;
END $$;
CREATE TRIGGER tags_note_removal AFTER DELETE ON tags
    FOR EACH ROW EXECUTE FUNCTION note_untagged();
CREATE TRIGGER tags_note_move AFTER UPDATE OF digest ON tags
    FOR EACH ROW WHEN (OLD.digest <> NEW.digest) EXECUTE FUNCTION note_untagged();

CREATE FUNCTION note_subject_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH held AS (
        SELECT m.repository_id, m.digest FROM manifests m
        JOIN gone g ON g.repository_id = m.repository_id AND g.digest = m.subject
        ORDER BY m.repository_id, m.digest FOR NO KEY UPDATE OF m)
    UPDATE manifests m SET unreferenced_since = clock_timestamp(), had_subject = true FROM held h
        WHERE m.repository_id = h.repository_id AND m.digest = h.digest;
    RETURN NULL;
END $$;
CREATE TRIGGER manifests_note AFTER DELETE ON manifests
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_subject_gone();

-- A blob is not needed since its link was not: the grace is not waited for twice. Where another link of
-- that very moment has added the row, it is locked: a collector that took it now would find this link.
CREATE FUNCTION note_unlinked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO unlinked_blobs (digest, since)
        SELECT DISTINCT digest, coalesce(unreferenced_since, clock_timestamp()) FROM gone ORDER BY 1, 2
        ON CONFLICT (digest, since) DO UPDATE SET since = excluded.since;
    RETURN NULL;
END $$;
CREATE TRIGGER repository_blobs_note AFTER DELETE ON repository_blobs
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_unlinked();
