-- When a tag was last pushed, to the same manifest or to another.
ALTER TABLE tags ADD COLUMN pushed_at timestamptz NOT NULL DEFAULT now();
UPDATE tags SET pushed_at = moved_at;

-- Tags that stay where they are, of one repository or of all in a namespace: those that match
-- `pattern` and none of `exceptions`. `*` stands for any characters.
CREATE TABLE immutable_tags (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint REFERENCES repositories ON DELETE CASCADE,
    namespace_id bigint REFERENCES accounts ON DELETE CASCADE,
    pattern text NOT NULL,
    exceptions text[] NOT NULL DEFAULT '{}',
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(repository_id, namespace_id) = 1)
);
CREATE INDEX immutable_tags_by_repository ON immutable_tags (repository_id) WHERE repository_id IS NOT NULL;
CREATE INDEX immutable_tags_by_namespace ON immutable_tags (namespace_id) WHERE namespace_id IS NOT NULL;

-- No backslash and no percent sign can be in a pattern.
CREATE FUNCTION tag_matches(tag text, pattern text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT tag LIKE replace(replace(pattern, '_', '\_'), '*', '%')
$$;

-- Kept here and not by those who move and delete tags, so that none of them can forget it. Two who
-- push one new tag at once meet at its row: the second one finds the first one's digest.
CREATE FUNCTION keep_immutable_tags() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rule record;
BEGIN
    -- Most registries have no rule, and need not look for whom it would be.
    IF NOT EXISTS (SELECT FROM immutable_tags) THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    -- The deletion of a whole repository, which says so.
    IF current_setting('openregistry.deleted_repository', true) = OLD.repository_id::text THEN
        RETURN OLD;
    END IF;
    SELECT i.id, i.pattern, r.name AS repository, a.name AS namespace INTO rule
    FROM repositories r
    LEFT JOIN accounts n ON n.name = split_part(r.name, '/', 1)
    JOIN immutable_tags i ON i.repository_id = r.id OR i.namespace_id = n.id
    LEFT JOIN accounts a ON a.id = i.namespace_id
    WHERE r.id = OLD.repository_id AND tag_matches(OLD.name, i.pattern)
        AND NOT EXISTS (SELECT FROM unnest(i.exceptions) AS e (pattern) WHERE tag_matches(OLD.name, e.pattern))
    ORDER BY i.id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'OR001',
            MESSAGE = format(
                'The tag %s is immutable in %s: it is neither moved nor deleted while rule %s keeps tags like %s. '
                'Push another tag, or have an administrator of %s remove the rule.',
                OLD.name, rule.repository, rule.id, rule.pattern, coalesce(rule.namespace, rule.repository)),
            DETAIL = jsonb_build_object(
                'tag', OLD.name, 'repository', rule.repository, 'rule', rule.id,
                'pattern', rule.pattern, 'account', rule.namespace);
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER tags_stay_on_move BEFORE UPDATE OF repository_id, name, digest ON tags
    FOR EACH ROW
    WHEN ((OLD.repository_id, OLD.name, OLD.digest) IS DISTINCT FROM (NEW.repository_id, NEW.name, NEW.digest))
    EXECUTE FUNCTION keep_immutable_tags();
CREATE TRIGGER tags_stay BEFORE DELETE ON tags
    FOR EACH ROW EXECUTE FUNCTION keep_immutable_tags();

-- What is kept of a repository, or of each in a namespace whose repository has no policy of its own.
-- Times are in seconds; null: no such rule, and no removal of what has no tag.
CREATE TABLE retention_policies (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint UNIQUE REFERENCES repositories ON DELETE CASCADE,
    namespace_id bigint UNIQUE REFERENCES accounts ON DELETE CASCADE,
    keep_last integer,
    keep_newer bigint,
    keep_matching text[] NOT NULL DEFAULT '{}',
    keep_pulled bigint,
    untagged_after bigint,
    CHECK (num_nonnulls(repository_id, namespace_id) = 1)
);
