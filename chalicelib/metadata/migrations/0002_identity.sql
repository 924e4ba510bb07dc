-- Users, organisations and robots. Users and organisations own the namespace of their name, and so
-- share one set of names; a robot's name is OWNER+NAME. A deleted account keeps its row, for the
-- audit log's sake, and loses its name, its email and everything else that says who it was.
CREATE TYPE account_kind AS ENUM ('user', 'organisation', 'robot');

CREATE TABLE accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind account_kind NOT NULL,
    name text COLLATE "C" UNIQUE CHECK (length(name) BETWEEN 1 AND 128),
    email text,
    email_verified boolean NOT NULL DEFAULT false,
    password_hash text,
    -- How many passwords there have been: a registry token that was had with a former one does not
    -- hold.
    password_number integer NOT NULL DEFAULT 0,
    administrator boolean NOT NULL DEFAULT false,
    -- What a member of an organisation may do with its repositories, and what visibility a new
    -- repository of the account gets; null: what the settings say.
    member_role text NOT NULL DEFAULT 'read' CHECK (member_role IN ('none', 'read', 'write', 'maintain', 'admin')),
    new_repositories_public boolean,
    -- Whose robot this is.
    owner_id bigint REFERENCES accounts,
    -- The handle by which authenticators know this user (WebAuthn, "user handle").
    passkey_handle bytea UNIQUE,
    suspended_at timestamptz,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'robot') = (owner_id IS NOT NULL)),
    CHECK ((name IS NULL) = (deleted_at IS NOT NULL))
);
-- An email is one account's once it is verified; until then anybody may claim it, so that nothing
-- tells whose it is, and nobody keeps its owner from it.
CREATE UNIQUE INDEX accounts_by_verified_email ON accounts (lower(email)) WHERE email_verified;
CREATE INDEX accounts_by_email ON accounts (lower(email)) WHERE email IS NOT NULL;
CREATE INDEX accounts_by_owner ON accounts (owner_id) WHERE owner_id IS NOT NULL;

-- Names of accounts that were deleted or renamed, hashed (SHA-256): nobody gets one again, and
-- with it the trust that others put into its images.
CREATE TABLE retired_names (
    hash bytea PRIMARY KEY
);

CREATE TABLE members (
    organisation_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    user_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('member', 'owner')),
    joined_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organisation_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id);

CREATE TABLE teams (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    name text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organisation_id, name),
    UNIQUE (id, organisation_id)
);

-- Who leaves the organisation leaves its teams.
CREATE TABLE team_members (
    team_id bigint NOT NULL,
    organisation_id bigint NOT NULL,
    user_id bigint NOT NULL,
    PRIMARY KEY (team_id, user_id),
    FOREIGN KEY (team_id, organisation_id) REFERENCES teams (id, organisation_id) ON DELETE CASCADE,
    FOREIGN KEY (organisation_id, user_id) REFERENCES members ON DELETE CASCADE
);
CREATE INDEX team_members_by_user ON team_members (user_id);

CREATE TABLE invitations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Null: to the registry, where sign-up is by invitation.
    organisation_id bigint REFERENCES accounts ON DELETE CASCADE,
    email text NOT NULL,
    role text NOT NULL DEFAULT 'member' CHECK (role IN ('member', 'owner')),
    secret_hash bytea NOT NULL UNIQUE,
    invited_by bigint REFERENCES accounts,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX invitations_by_organisation ON invitations (organisation_id, id);

-- A repository belongs to the account that its name's first component names.
ALTER TABLE repositories
    ADD COLUMN public boolean NOT NULL DEFAULT false,
    ADD COLUMN created_by text NOT NULL DEFAULT '',
    ADD COLUMN description text NOT NULL DEFAULT '';
CREATE INDEX repositories_by_namespace ON repositories (split_part(name, '/', 1), name);

-- A repository's former names, until another repository takes one.
CREATE TABLE repository_renames (
    name text COLLATE "C" PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    renamed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX repository_renames_by_repository ON repository_renames (repository_id);

-- What a user, a robot or a team may do with one repository, or with all of a namespace.
CREATE TABLE grants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint REFERENCES repositories ON DELETE CASCADE,
    namespace_id bigint REFERENCES accounts ON DELETE CASCADE,
    account_id bigint REFERENCES accounts ON DELETE CASCADE,
    team_id bigint REFERENCES teams ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('read', 'write', 'maintain', 'admin')),
    granted_at timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(repository_id, namespace_id) = 1),
    CHECK (num_nonnulls(account_id, team_id) = 1)
);
CREATE UNIQUE INDEX grants_once ON grants
    (coalesce(repository_id, 0), coalesce(namespace_id, 0), coalesce(account_id, 0), coalesce(team_id, 0));
CREATE INDEX grants_by_account ON grants (account_id) WHERE account_id IS NOT NULL;
CREATE INDEX grants_by_team ON grants (team_id) WHERE team_id IS NOT NULL;
CREATE INDEX grants_by_namespace ON grants (namespace_id) WHERE namespace_id IS NOT NULL;

-- Personal access tokens of users, and the tokens of robots. Stored hashed; the row is kept after
-- revocation so that a person sees what there was.
CREATE TABLE access_tokens (
    id uuid PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    name text NOT NULL,
    scopes text[] NOT NULL,
    hash bytea NOT NULL,
    created_by bigint REFERENCES accounts,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX access_tokens_by_account ON access_tokens (account_id);

-- Refresh tokens (RFC 6749, section 6). Each is used once and followed by another of its family;
-- one that comes back after that ends the family (RFC 9700, section 4.14.2).
CREATE TABLE refresh_families (
    id uuid PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    -- The access token that it was had with, if one was.
    access_token_id uuid REFERENCES access_tokens ON DELETE CASCADE,
    client text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
CREATE INDEX refresh_families_by_account ON refresh_families (account_id);
CREATE TABLE refresh_tokens (
    hash bytea PRIMARY KEY,
    family_id uuid NOT NULL REFERENCES refresh_families ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX refresh_tokens_by_family ON refresh_tokens (family_id);

-- Browsers that are signed in.
CREATE TABLE sessions (
    hash bytea PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    method text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account_id);

-- Secrets for one use that a person was sent or a browser was given: verification of an email,
-- reset of a password, a challenge for an authenticator, a sign-in under way elsewhere.
CREATE TABLE one_time_secrets (
    hash bytea PRIMARY KEY,
    purpose text NOT NULL,
    account_id bigint REFERENCES accounts ON DELETE CASCADE,
    data jsonb NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX one_time_secrets_by_expiry ON one_time_secrets (expires_at);
CREATE INDEX one_time_secrets_by_account ON one_time_secrets (account_id) WHERE account_id IS NOT NULL;

-- Who this account is elsewhere (GitHub, an OpenID provider).
CREATE TABLE external_identities (
    id uuid NOT NULL UNIQUE,
    issuer text NOT NULL,
    subject text NOT NULL,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    linked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX external_identities_by_account ON external_identities (account_id);

CREATE TABLE passkeys (
    credential_id bytea PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    name text NOT NULL,
    public_key bytea NOT NULL,
    sign_count bigint NOT NULL,
    transports text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz
);
CREATE INDEX passkeys_by_account ON passkeys (account_id);

-- Keyless push: whose workloads may have a registry token, and for what. `claims` maps names of
-- claims to patterns that theirs must match.
CREATE TABLE trust_rules (
    id uuid PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('oidc', 'spiffe')),
    issuer text NOT NULL,
    audience text NOT NULL,
    claims jsonb NOT NULL,
    scopes text[] NOT NULL,
    created_by bigint REFERENCES accounts,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX trust_rules_by_account ON trust_rules (account_id);
CREATE INDEX trust_rules_by_issuer ON trust_rules (issuer);

-- Tokens of others that were exchanged already: each works once.
CREATE TABLE exchanged_tokens (
    hash bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX exchanged_tokens_by_expiry ON exchanged_tokens (expires_at);

-- Counters of rate limits. A key is hashed: it holds no address and no name.
CREATE TABLE rates (
    key bytea PRIMARY KEY,
    count integer NOT NULL,
    resets_at timestamptz NOT NULL
);
CREATE INDEX rates_by_reset ON rates (resets_at);

-- Every security event. Rows are added, and never changed or removed. Ids, not names: the name
-- behind an id goes with its account.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    event text NOT NULL,
    -- Who did it: 'user:7', 'token:…', 'operator', '' for nobody known.
    subject text NOT NULL,
    -- Whom it concerns: an account, in whose log it is shown.
    account_id bigint,
    repository_id bigint,
    detail jsonb NOT NULL
);
CREATE INDEX audit_by_account ON audit (account_id, id);

-- A new repository is as public as its account wants, and noted.
CREATE FUNCTION choose_visibility() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.public := coalesce(
        (SELECT new_repositories_public FROM accounts WHERE name = split_part(NEW.name, '/', 1)),
        NEW.public);
    RETURN NEW;
END $$;
CREATE TRIGGER repositories_choose_visibility BEFORE INSERT ON repositories
    FOR EACH ROW EXECUTE FUNCTION choose_visibility();

CREATE FUNCTION note_repository() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (event, subject, account_id, repository_id, detail)
    SELECT 'repository.create', NEW.created_by,
        (SELECT id FROM accounts WHERE name = split_part(NEW.name, '/', 1)),
        NEW.id, jsonb_build_object('public', NEW.public);
    RETURN NULL;
END $$;
CREATE TRIGGER repositories_are_noted AFTER INSERT ON repositories
    FOR EACH ROW EXECUTE FUNCTION note_repository();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is never changed';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Raised by every change after which somebody may do less than before. What a process remembers of
-- permissions holds until this number moves.
CREATE TABLE access_epoch (
    "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    epoch bigint NOT NULL
);
INSERT INTO access_epoch (epoch) VALUES (1);

CREATE FUNCTION raise_access_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE access_epoch SET epoch = epoch + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER accounts_raise_epoch
    AFTER UPDATE OF name, password_hash, email_verified, administrator, member_role, suspended_at, deleted_at OR DELETE
    ON accounts FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER members_raise_epoch AFTER UPDATE OR DELETE ON members
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER team_members_raise_epoch AFTER UPDATE OR DELETE ON team_members
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER grants_raise_epoch AFTER UPDATE OR DELETE ON grants
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER access_tokens_raise_epoch AFTER UPDATE OF revoked_at, scopes OR DELETE ON access_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER trust_rules_raise_epoch AFTER UPDATE OR DELETE ON trust_rules
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER external_identities_raise_epoch AFTER UPDATE OR DELETE ON external_identities
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
CREATE TRIGGER repositories_raise_epoch AFTER UPDATE OF name, public OR DELETE ON repositories
    FOR EACH STATEMENT EXECUTE FUNCTION raise_access_epoch();
