-- Resolvers: networks on which the content of images lives too, and is found by its CID.

-- Resolvers that accounts bring (ACCOUNT/NAME), or that are for all (no account; NAME). Keys are sealed
-- with one that is derived from SECRET_KEY. (IPFS nodes of the registry's own are a setting: the
-- resolver `ipfs`.)
CREATE TABLE resolvers (
    name text PRIMARY KEY,
    account_id bigint REFERENCES accounts,
    kind text NOT NULL CHECK (kind IN ('filebase')),
    address jsonb NOT NULL,
    sealed bytea NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Nobody may choose it any more. The row, which has the keys, goes once all was taken away there.
    removed_at timestamptz
);
CREATE INDEX resolvers_by_account ON resolvers (account_id);

-- Where images go: those of a repository, else of an account, else (both null) all. `insisted`:
-- private ones too, though whoever knows a CID can fetch what it names.
CREATE TABLE resolver_choices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint UNIQUE REFERENCES repositories ON DELETE CASCADE,
    account_id bigint UNIQUE REFERENCES accounts ON DELETE CASCADE,
    resolvers text[] NOT NULL,
    insisted boolean NOT NULL DEFAULT false,
    chosen_by text NOT NULL,
    chosen_at timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(repository_id, account_id) <= 1)
);
CREATE UNIQUE INDEX resolver_choices_for_all ON resolver_choices ((true))
    WHERE repository_id IS NULL AND account_id IS NULL;

-- What was chosen for a repository, kept with it: a push and a pull look at no other table.
ALTER TABLE repositories
    ADD COLUMN resolvers text[] NOT NULL DEFAULT '{}',
    ADD COLUMN insisted boolean NOT NULL DEFAULT false;

-- All layers of the image are encrypted: it may be resolved though its repository is private.
ALTER TABLE manifests ADD COLUMN encrypted boolean NOT NULL DEFAULT false;

-- A blob or a manifest on a network: to be put there (`waiting`), `there`, or to be taken away
-- (`leaving`). Of a manifest whose content is all there, `derived_cid` is that of the image which can
-- be pulled from the network alone, and `root_cid` that of its descriptor, by which it is pulled. Two
-- digests of one content (sha256, sha512) have one CID. The row outlives the blob's until the network
-- was told.
CREATE TABLE resolver_copies (
    digest bytea NOT NULL,
    resolver text NOT NULL,
    size bigint NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'there', 'leaving')),
    cid text,
    derived_cid text,
    root_cid text,
    -- All that the manifest names was there, and a job was written that derives the image.
    complete boolean NOT NULL DEFAULT false,
    -- Why it is not there yet; '' where it was not tried, or is there.
    error text NOT NULL DEFAULT '',
    -- When it was put there, or the network last said that it keeps it.
    checked_at timestamptz NOT NULL DEFAULT now(),
    -- Since when, at the earliest, nobody may want it there: the grace is waited for, but not after
    -- -infinity. Null once it was found wanted.
    doubted_since timestamptz,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (digest, resolver),
    CHECK (state <> 'there' OR cid IS NOT NULL)
);
CREATE INDEX resolver_copies_by_cid ON resolver_copies (cid);
CREATE INDEX resolver_copies_by_root ON resolver_copies (root_cid) WHERE root_cid IS NOT NULL;
CREATE INDEX resolver_copies_by_derived ON resolver_copies (derived_cid) WHERE derived_cid IS NOT NULL;
CREATE INDEX resolver_copies_by_check ON resolver_copies (resolver, checked_at) WHERE state = 'there';
CREATE INDEX resolver_copies_by_state ON resolver_copies (resolver, state, digest) WHERE state <> 'there';
CREATE INDEX resolver_copies_doubted ON resolver_copies (doubted_since) WHERE doubted_since IS NOT NULL;
CREATE INDEX manifests_by_digest ON manifests (digest);

CREATE FUNCTION choice_for(wanted_id bigint, wanted_name text) RETURNS resolver_choices LANGUAGE sql STABLE AS $$
    SELECT c.* FROM resolver_choices c LEFT JOIN accounts a ON a.id = c.account_id
    WHERE c.repository_id = wanted_id OR a.name = split_part(wanted_name, '/', 1)
        OR (c.repository_id IS NULL AND c.account_id IS NULL)
    ORDER BY c.repository_id NULLS LAST, c.account_id NULLS LAST LIMIT 1
$$;

CREATE FUNCTION note_choice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    choice resolver_choices;
BEGIN
    -- Waits for choices that are being made: they are seen here, or see this repository.
    PERFORM pg_advisory_xact_lock_shared(hashtext('resolver_choices'));
    choice := choice_for(NEW.id, NEW.name);
    NEW.resolvers := coalesce(choice.resolvers, '{}');
    NEW.insisted := coalesce(choice.insisted, false);
    RETURN NEW;
END $$;
CREATE TRIGGER repositories_note_choice BEFORE INSERT OR UPDATE OF name ON repositories
    FOR EACH ROW EXECUTE FUNCTION note_choice();

CREATE FUNCTION spread_choice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    chosen_for resolver_choices := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    ids bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('resolver_choices'));
    IF chosen_for.repository_id IS NOT NULL THEN
        ids := ARRAY[chosen_for.repository_id];
    ELSIF chosen_for.account_id IS NOT NULL THEN
        ids := ARRAY(SELECT r.id FROM repositories r JOIN accounts a ON a.name = split_part(r.name, '/', 1)
            WHERE a.id = chosen_for.account_id);
    ELSE
        ids := ARRAY(SELECT id FROM repositories);
    END IF;
    UPDATE repositories r SET resolvers = coalesce(n.resolvers, '{}'), insisted = coalesce(n.insisted, false)
        FROM repositories s CROSS JOIN LATERAL choice_for(s.id, s.name) n
        WHERE s.id = ANY (ids) AND r.id = s.id
            AND (r.resolvers, r.insisted) IS DISTINCT FROM (coalesce(n.resolvers, '{}'), coalesce(n.insisted, false));
    RETURN NULL;
END $$;
CREATE TRIGGER resolver_choices_spread AFTER INSERT OR UPDATE OR DELETE ON resolver_choices
    FOR EACH ROW EXECUTE FUNCTION spread_choice();

-- A job looks at all that is there already: it is put where it is to be, and let go of where it may not
-- be any more.
CREATE FUNCTION have_filled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs (kind, data) VALUES ('resolve.fill', jsonb_build_object('repository', NEW.id, 'after', ''));
    RETURN NULL;
END $$;
CREATE TRIGGER repositories_fill AFTER UPDATE OF public, resolvers, insisted, name ON repositories
    FOR EACH ROW WHEN ((OLD.resolvers <> '{}' OR NEW.resolvers <> '{}')
        AND (OLD.public, OLD.resolvers, OLD.insisted) IS DISTINCT FROM (NEW.public, NEW.resolvers, NEW.insisted))
    EXECUTE FUNCTION have_filled();

-- What is pushed is resolved by a job.
CREATE FUNCTION have_resolved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs (kind, data)
        SELECT 'resolve.image', jsonb_build_object('repository', r.id, 'digest', encode(c.digest, 'hex'))
        FROM come c JOIN repositories r ON r.id = c.repository_id
        WHERE r.resolvers <> '{}' AND (r.public OR r.insisted OR c.encrypted);
    RETURN NULL;
END $$;
CREATE TRIGGER manifests_resolve AFTER INSERT ON manifests
    REFERENCING NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION have_resolved();

-- What may be wanted no more is judged later. In the order of digests, as all do who lock several.
CREATE FUNCTION doubt_copies(doubted bytea[]) RETURNS void LANGUAGE sql AS $$
    WITH held AS (SELECT digest, resolver FROM resolver_copies WHERE digest = ANY (doubted)
        ORDER BY digest, resolver FOR NO KEY UPDATE)
    UPDATE resolver_copies c
        SET doubted_since = CASE WHEN c.doubted_since = '-infinity' THEN c.doubted_since ELSE clock_timestamp() END
        FROM held h
        WHERE c.digest = h.digest AND c.resolver = h.resolver
$$;
CREATE FUNCTION doubt_manifests() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM doubt_copies(array_agg(digest)) FROM gone HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER manifests_doubt AFTER DELETE ON manifests
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION doubt_manifests();
CREATE FUNCTION doubt_blobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM doubt_copies(array_agg(DISTINCT blob)) FROM gone WHERE blob IS NOT NULL HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_references_doubt AFTER DELETE ON manifest_references
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION doubt_blobs();
CREATE FUNCTION doubt_blocked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE resolver_copies SET doubted_since = '-infinity' WHERE digest = NEW.digest;
    ELSE
        INSERT INTO jobs (kind, data)
            SELECT 'resolve.image', jsonb_build_object('repository', r.id, 'digest', encode(i.digest, 'hex'))
            FROM (SELECT repository_id, digest FROM manifests WHERE digest = OLD.digest
                UNION SELECT f.repository_id, f.manifest FROM repository_blobs l JOIN manifest_references f
                    ON f.repository_id = l.repository_id AND f.blob = l.digest WHERE l.digest = OLD.digest) i
            JOIN repositories r ON r.id = i.repository_id WHERE r.resolvers <> '{}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER blocked_digests_doubt AFTER INSERT OR DELETE ON blocked_digests
    FOR EACH ROW EXECUTE FUNCTION doubt_blocked();

-- The signed index of what networks have, that this database published last, and where its files
-- are: at resolvers, or in object storage (no place). Without a number it has published none.
CREATE TABLE published_index (
    attempt bigint NOT NULL,
    number bigint,
    cid text,
    top text,
    pages text[]
);
CREATE UNIQUE INDEX published_index_only ON published_index ((true));
CREATE TABLE index_files (
    place text NOT NULL,
    cid text NOT NULL,
    there boolean NOT NULL,
    PRIMARY KEY (place, cid)
);
