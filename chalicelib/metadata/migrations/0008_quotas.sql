-- What may be kept in a namespace, the first component of repositories' names; '' is for all
-- namespaces without a row of their own. Null: no limit.
CREATE TABLE quotas (
    namespace text COLLATE "C" PRIMARY KEY,
    bytes bigint CHECK (bytes >= 0),
    repositories bigint CHECK (repositories >= 0)
);

-- What namespaces with a quota use: the bytes of their blobs, each counted once, and of the manifests
-- of each repository. `high`: nine tenths of a limit, or more.
CREATE TABLE quota_usage (
    namespace text COLLATE "C" PRIMARY KEY,
    bytes bigint NOT NULL DEFAULT 0,
    repositories bigint NOT NULL DEFAULT 0,
    high boolean NOT NULL DEFAULT false
);

-- How many repositories of such a namespace link a blob.
CREATE TABLE quota_blobs (
    namespace text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    size bigint NOT NULL,
    links bigint NOT NULL,
    PRIMARY KEY (namespace, digest)
);

CREATE FUNCTION quota_of(wanted text) RETURNS quotas LANGUAGE sql STABLE AS $$
    SELECT * FROM quotas WHERE namespace IN ('', wanted) ORDER BY namespace DESC LIMIT 1
$$;

CREATE FUNCTION is_high(quota quotas, used_bytes bigint, used_repositories bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(used_bytes >= 0.9 * quota.bytes, false)
        OR coalesce(used_repositories >= 0.9 * quota.repositories, false)
$$;

-- Let one transaction at a time count in a namespace that has a quota. The row is locked before
-- those of quota_blobs, and after all others that a push locks.
CREATE FUNCTION hold_usage(counted text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM quota_usage WHERE namespace = counted FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO quota_usage (namespace) VALUES (counted)
        ON CONFLICT (namespace) DO UPDATE SET namespace = excluded.namespace;
    END IF;
END $$;

CREATE FUNCTION refuse_over_quota(counted text, what text, most bigint, used bigint, needed bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'OR001',
        MESSAGE = format(
            'The quota of %s is %s %s: it has %s, and this needs %s more. '
            'Delete what is no longer wanted, or ask an administrator of the registry for a larger quota.',
            counted, most, what, used, needed),
        DETAIL = jsonb_build_object(
            'account', counted, 'quota', what, 'limit', most, 'used', used, 'needed', needed);
END $$;

-- Add to the usage of a namespace that is held, and refuse what goes beyond its quota. Whoever wants
-- to know is told by a job when most of it is used, and again only once it was less meanwhile.
CREATE FUNCTION change_usage(counted text, repository text, more_bytes bigint, more_repositories bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    quota quotas := quota_of(counted);
    used quota_usage;
    now_high boolean;
BEGIN
    UPDATE quota_usage u
    SET bytes = u.bytes + more_bytes, repositories = u.repositories + more_repositories
    WHERE namespace = counted RETURNING * INTO used;
    IF more_repositories > 0 AND used.repositories > quota.repositories THEN
        PERFORM refuse_over_quota(counted, 'repositories', quota.repositories,
            used.repositories - more_repositories, more_repositories);
    END IF;
    IF more_bytes > 0 AND used.bytes > quota.bytes THEN
        PERFORM refuse_over_quota(counted, 'bytes', quota.bytes, used.bytes - more_bytes, more_bytes);
    END IF;
    now_high := is_high(quota, used.bytes, used.repositories);
    IF now_high <> used.high THEN
        UPDATE quota_usage SET high = now_high WHERE namespace = counted;
        IF now_high THEN
            INSERT INTO jobs (kind, data) VALUES ('quotas.warn', jsonb_build_object(
                'account', counted, 'repository', repository,
                'bytes', used.bytes, 'bytes_limit', quota.bytes,
                'repositories', used.repositories, 'repositories_limit', quota.repositories));
        END IF;
    END IF;
END $$;

-- What is added is counted when its transaction commits, so that nobody waits for a namespace but for
-- the time that a commit takes. What goes is counted at once, while its repository is there to tell
-- the namespace. No transaction does both with one row. Most registries have no quota at all, which is
-- seen first: each blob and manifest that is pushed comes by here.
CREATE FUNCTION count_link() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    held record;
    blob quota_blobs;
    link repository_blobs;
BEGIN
    IF NOT EXISTS (SELECT FROM quotas) THEN
        RETURN NULL;
    END IF;
    link := CASE TG_OP WHEN 'INSERT' THEN NEW ELSE OLD END;
    SELECT r.name AS repository, split_part(r.name, '/', 1) AS namespace INTO held FROM repositories r
    WHERE r.id = link.repository_id
        AND EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', split_part(r.name, '/', 1)));
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM hold_usage(held.namespace);
    IF TG_OP = 'INSERT' THEN
        INSERT INTO quota_blobs AS q (namespace, digest, size, links)
        SELECT held.namespace, b.digest, b.size, 1 FROM blobs b WHERE b.digest = link.digest
        ON CONFLICT (namespace, digest) DO UPDATE SET links = q.links + 1 RETURNING * INTO blob;
        IF blob.links = 1 THEN
            PERFORM change_usage(held.namespace, held.repository, blob.size, 0);
        END IF;
    ELSE
        UPDATE quota_blobs q SET links = q.links - 1
        WHERE q.namespace = held.namespace AND q.digest = link.digest RETURNING * INTO blob;
        IF blob.links = 0 THEN
            DELETE FROM quota_blobs q WHERE q.namespace = held.namespace AND q.digest = link.digest;
            PERFORM change_usage(held.namespace, held.repository, -blob.size, 0);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER quotas_count_link AFTER INSERT ON repository_blobs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_link();
CREATE TRIGGER quotas_count_unlink AFTER DELETE ON repository_blobs
    FOR EACH ROW EXECUTE FUNCTION count_link();

CREATE FUNCTION count_manifest() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    held record;
    added boolean := TG_OP = 'INSERT';
    repository bigint;
    size bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM quotas) THEN
        RETURN NULL;
    END IF;
    repository := CASE WHEN added THEN NEW.repository_id ELSE OLD.repository_id END;
    size := CASE WHEN added THEN octet_length(NEW.payload) ELSE -octet_length(OLD.payload) END;
    SELECT r.name AS repository, split_part(r.name, '/', 1) AS namespace INTO held FROM repositories r
    WHERE r.id = repository
        AND EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', split_part(r.name, '/', 1)));
    IF FOUND THEN
        PERFORM hold_usage(held.namespace);
        PERFORM change_usage(held.namespace, held.repository, size, 0);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER quotas_count_manifest AFTER INSERT ON manifests
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_manifest();
CREATE TRIGGER quotas_discount_manifest AFTER DELETE ON manifests
    FOR EACH ROW EXECUTE FUNCTION count_manifest();

CREATE FUNCTION count_repository() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    added boolean := TG_OP = 'INSERT';
    name text := CASE WHEN added THEN NEW.name ELSE OLD.name END;
    counted text := split_part(name, '/', 1);
BEGIN
    IF EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', counted)) THEN
        PERFORM hold_usage(counted);
        PERFORM change_usage(counted, name, 0, CASE WHEN added THEN 1 ELSE -1 END);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER quotas_count_repository AFTER INSERT ON repositories
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION count_repository();
CREATE TRIGGER quotas_discount_repository AFTER DELETE ON repositories
    FOR EACH ROW EXECUTE FUNCTION count_repository();

-- A repository that goes to another namespace takes along what only it links there.
CREATE FUNCTION count_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before text := split_part(OLD.name, '/', 1);
    after text := split_part(NEW.name, '/', 1);
    counted text;
    kept bigint := (SELECT coalesce(sum(octet_length(payload)), 0) FROM manifests WHERE repository_id = NEW.id);
    freed bigint;
    taken bigint;
BEGIN
    FOR counted IN SELECT n FROM unnest(ARRAY[before, after]) AS n ORDER BY n LOOP
        IF EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', counted)) THEN
            PERFORM hold_usage(counted);
        END IF;
    END LOOP;
    IF EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', before)) THEN
        UPDATE quota_blobs q SET links = q.links - 1 FROM repository_blobs l
        WHERE l.repository_id = NEW.id AND q.namespace = before AND q.digest = l.digest;
        WITH gone AS (
            DELETE FROM quota_blobs q USING repository_blobs l
            WHERE l.repository_id = NEW.id AND q.namespace = before AND q.digest = l.digest AND q.links = 0
            RETURNING q.size
        ) SELECT coalesce(sum(size), 0) INTO freed FROM gone;
        PERFORM change_usage(before, OLD.name, -freed - kept, -1);
    END IF;
    IF EXISTS (SELECT FROM quotas q WHERE q.namespace IN ('', after)) THEN
        WITH come AS (
            INSERT INTO quota_blobs AS q (namespace, digest, size, links)
            SELECT after, b.digest, b.size, 1 FROM repository_blobs l JOIN blobs b USING (digest)
            WHERE l.repository_id = NEW.id
            ON CONFLICT (namespace, digest) DO UPDATE SET links = q.links + 1 RETURNING q.size, q.links
        ) SELECT coalesce(sum(size), 0) INTO taken FROM come WHERE links = 1;
        PERFORM change_usage(after, NEW.name, taken + kept, 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER quotas_count_move AFTER UPDATE OF name ON repositories
    FOR EACH ROW WHEN (split_part(OLD.name, '/', 1) <> split_part(NEW.name, '/', 1))
    EXECUTE FUNCTION count_move();

-- Refuse what a push is about to bring, as far as that can be told before its bytes are there: a
-- repository too many, a blob of `needed` bytes and this digest that the namespace lacks and has no
-- room for; or, of an unknown digest, one larger than the whole quota. Gives how many bytes a blob can
-- have at all; null: no limit.
CREATE FUNCTION check_quota(repository text, wanted bytea, needed bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    counted text := split_part(repository, '/', 1);
    quota quotas := quota_of(counted);
    used quota_usage;
BEGIN
    SELECT * INTO used FROM quota_usage WHERE namespace = counted;
    IF coalesce(used.repositories, 0) >= quota.repositories
        AND NOT EXISTS (SELECT FROM repositories r WHERE r.name = repository) THEN
        PERFORM refuse_over_quota(counted, 'repositories', quota.repositories, coalesce(used.repositories, 0), 1);
    END IF;
    IF needed > quota.bytes - (CASE WHEN wanted IS NULL THEN 0 ELSE coalesce(used.bytes, 0) END)
        AND NOT EXISTS (SELECT FROM quota_blobs q WHERE q.namespace = counted AND q.digest = wanted) THEN
        PERFORM refuse_over_quota(counted, 'bytes', quota.bytes, coalesce(used.bytes, 0), needed);
    END IF;
    RETURN quota.bytes;
END $$;

-- A deleted account leaves no name behind.
CREATE FUNCTION forget_quota() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM quotas WHERE namespace = OLD.name;
    DELETE FROM quota_usage WHERE namespace = OLD.name;
    DELETE FROM quota_blobs WHERE namespace = OLD.name;
    RETURN NULL;
END $$;
CREATE TRIGGER quotas_are_forgotten AFTER UPDATE OF name ON accounts
    FOR EACH ROW WHEN (OLD.name IS NOT NULL AND NEW.name IS NULL)
    EXECUTE FUNCTION forget_quota();

CREATE FUNCTION digest_text(digest bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE get_byte(digest, 0) WHEN 18 THEN 'sha256:' ELSE 'sha512:' END || encode(substr(digest, 2), 'hex')
$$;

-- What nobody may read or push, whether or not it is here. Those who try are told `refusal`, which has
-- the reason where that is public.
CREATE TABLE blocked_digests (
    digest bytea PRIMARY KEY,
    reason text NOT NULL,
    public boolean NOT NULL,
    blocked_by text NOT NULL,
    blocked_at timestamptz NOT NULL DEFAULT now(),
    refusal text NOT NULL GENERATED ALWAYS AS (
        digest_text(digest) || ' is blocked at this registry' || CASE WHEN public THEN ': ' || reason ELSE '.' END
    ) STORED
);

-- Before the row is made, so that repeating what is there is refused too.
CREATE FUNCTION refuse_blocked() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    sentence text;
BEGIN
    SELECT refusal INTO sentence FROM blocked_digests b WHERE b.digest = NEW.digest;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'OR001', MESSAGE = sentence,
            DETAIL = jsonb_build_object('digest', digest_text(NEW.digest));
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER blocked_are_not_linked BEFORE INSERT ON repository_blobs
    FOR EACH ROW EXECUTE FUNCTION refuse_blocked();
CREATE TRIGGER blocked_are_not_kept BEFORE INSERT ON manifests
    FOR EACH ROW EXECUTE FUNCTION refuse_blocked();
CREATE TRIGGER blocked_are_not_named BEFORE INSERT ON manifest_references
    FOR EACH ROW EXECUTE FUNCTION refuse_blocked();
