-- +goose Up

ALTER TABLE accounts
    ADD COLUMN roles_version     bigint NOT NULL DEFAULT 0,
    ADD COLUMN roles_change_time timestamptz;
COMMENT ON COLUMN accounts.roles_version IS 'Grows with each change of its roles; access tokens carry it.';
CREATE INDEX accounts_roles_change_time_idx ON accounts (roles_change_time) WHERE roles_change_time IS NOT NULL;

CREATE TABLE organisations (
    organisation_id text        NOT NULL,
    name            text        NOT NULL,
    kind            text        NOT NULL,
    create_time     timestamptz NOT NULL,
    CONSTRAINT organisations_pkey PRIMARY KEY (organisation_id),
    CONSTRAINT organisations_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT organisations_kind_known CHECK (kind IN ('ADVERTISER', 'DISPLAY_OWNER'))
);
COMMENT ON TABLE organisations IS 'Tenants: advertisers and display owners. Whoever changes members or invitations locks the row first.';

CREATE TABLE members (
    organisation_id text        NOT NULL,
    account_id      text        NOT NULL,
    role            text        NOT NULL,
    create_time     timestamptz NOT NULL,
    CONSTRAINT members_pkey PRIMARY KEY (organisation_id, account_id),
    CONSTRAINT members_organisation_id_fkey FOREIGN KEY (organisation_id)
        REFERENCES organisations (organisation_id) ON DELETE CASCADE,
    CONSTRAINT members_account_id_fkey FOREIGN KEY (account_id)
        REFERENCES accounts (account_id),
    CONSTRAINT members_role_known CHECK (role IN ('owner', 'advertiser', 'operator', 'viewer'))
);
COMMENT ON TABLE members IS 'Which account has which role in which organisation.';
CREATE INDEX members_account_idx ON members (account_id, organisation_id);

CREATE TABLE invitations (
    invitation_id   text        NOT NULL,
    organisation_id text        NOT NULL,
    role            text        NOT NULL,
    inviter_id      text        NOT NULL,
    create_time     timestamptz NOT NULL,
    expire_time     timestamptz NOT NULL,
    accept_time     timestamptz,
    accepter_id     text        NOT NULL DEFAULT '',
    revoke_time     timestamptz,
    CONSTRAINT invitations_pkey PRIMARY KEY (invitation_id),
    CONSTRAINT invitations_organisation_id_fkey FOREIGN KEY (organisation_id)
        REFERENCES organisations (organisation_id) ON DELETE CASCADE,
    CONSTRAINT invitations_role_known CHECK (role IN ('owner', 'advertiser', 'operator', 'viewer')),
    CONSTRAINT invitations_accepted_or_revoked CHECK (accept_time IS NULL OR revoke_time IS NULL),
    CONSTRAINT invitations_accepter_known CHECK ((accept_time IS NULL) = (accepter_id = ''))
);
COMMENT ON TABLE invitations IS 'Offers of a role, each for one account. Their tokens follow from the id and are not stored.';
CREATE INDEX invitations_organisation_idx ON invitations (organisation_id, invitation_id);
CREATE INDEX invitations_over_idx ON invitations ((coalesce(accept_time, revoke_time, expire_time)));

CREATE TABLE api_keys (
    api_key_id        text        NOT NULL,
    organisation_id   text        NOT NULL,
    name              text        NOT NULL,
    role              text        NOT NULL,
    secret_hash       bytea       NOT NULL,
    creator_id        text        NOT NULL,
    create_time       timestamptz NOT NULL,
    expire_time       timestamptz NOT NULL,
    use_time          timestamptz,
    token_expire_time timestamptz,
    revoke_time       timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (api_key_id),
    CONSTRAINT api_keys_organisation_id_fkey FOREIGN KEY (organisation_id)
        REFERENCES organisations (organisation_id) ON DELETE CASCADE,
    CONSTRAINT api_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT api_keys_role_known CHECK (role IN ('advertiser', 'operator', 'viewer')),
    CONSTRAINT api_keys_secret_hash_length CHECK (octet_length(secret_hash) = 32)
);
COMMENT ON TABLE api_keys IS 'What programs act with for an organisation.';
COMMENT ON COLUMN api_keys.secret_hash IS 'SHA-256 of a secret of 256 bits.';
COMMENT ON COLUMN api_keys.token_expire_time IS 'When its last access token expires.';
CREATE INDEX api_keys_organisation_idx ON api_keys (organisation_id, api_key_id);
CREATE INDEX api_keys_revoked_idx ON api_keys (token_expire_time) WHERE revoke_time IS NOT NULL;
CREATE INDEX api_keys_over_idx ON api_keys ((coalesce(revoke_time, expire_time)));

CREATE TABLE requests (
    caller_id   text        NOT NULL,
    request_id  text        NOT NULL,
    fingerprint bytea       NOT NULL,
    result_id   text        NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (caller_id, request_id),
    CONSTRAINT requests_fingerprint_length CHECK (octet_length(fingerprint) = 32)
);
COMMENT ON TABLE requests IS 'Writes of the last day by caller and request id, so that a repeat gets the first answer.';
COMMENT ON COLUMN requests.fingerprint IS 'HMAC-SHA256 of the request body under a key that is not in the database.';
COMMENT ON COLUMN requests.result_id IS 'What it made.';
CREATE INDEX requests_expire_time_idx ON requests (expire_time);

ALTER TABLE audit_events
    ADD COLUMN organisation_id text,
    ADD COLUMN subject_id      text NOT NULL DEFAULT '',
    ADD COLUMN role            text NOT NULL DEFAULT '',
    ADD CONSTRAINT audit_events_organisation_id_fkey FOREIGN KEY (organisation_id)
        REFERENCES organisations (organisation_id) ON DELETE CASCADE;
COMMENT ON TABLE audit_events IS 'What happened to accounts and in organisations, for whom it concerns. Rows are never changed.';
COMMENT ON COLUMN audit_events.organisation_id IS 'The organisation it happened in.';
COMMENT ON COLUMN audit_events.subject_id IS 'What else it happened to: an invitation, an API key.';
CREATE INDEX audit_events_organisation_idx ON audit_events (organisation_id, event_id) WHERE organisation_id IS NOT NULL;

-- +goose Down

DROP INDEX audit_events_organisation_idx;
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_organisation_id_fkey,
    DROP COLUMN role,
    DROP COLUMN subject_id,
    DROP COLUMN organisation_id;
DROP TABLE requests;
DROP TABLE api_keys;
DROP TABLE invitations;
DROP TABLE members;
DROP TABLE organisations;
DROP INDEX accounts_roles_change_time_idx;
ALTER TABLE accounts
    DROP COLUMN roles_change_time,
    DROP COLUMN roles_version;
