-- +goose Up

CREATE TABLE accounts (
    account_id    text        NOT NULL,
    name          text        NOT NULL,
    name_key      text        NOT NULL,
    password_hash text        NOT NULL,
    create_time   timestamptz NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (account_id),
    CONSTRAINT accounts_name_key_unique UNIQUE (name_key),
    CONSTRAINT accounts_name_key_is_lower CHECK (name_key = lower(name)),
    CONSTRAINT accounts_name_length CHECK (char_length(name) BETWEEN 1 AND 64),
    CONSTRAINT accounts_password_hash_is_phc CHECK (password_hash LIKE '$argon2id$%')
);
COMMENT ON TABLE accounts IS 'People and programs that can log in.';
COMMENT ON COLUMN accounts.name IS 'As it was typed at sign-up.';
COMMENT ON COLUMN accounts.name_key IS 'What names are compared by.';
COMMENT ON COLUMN accounts.password_hash IS 'argon2id with its parameters, in PHC string form.';

CREATE TABLE sign_ups (
    request_id  text        NOT NULL,
    fingerprint bytea       NOT NULL,
    account_id  text        NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT sign_ups_pkey PRIMARY KEY (request_id),
    -- Deferred: the row goes in before the account, so that repeats wait for it
    -- and are not told that the name is taken.
    CONSTRAINT sign_ups_account_id_fkey FOREIGN KEY (account_id)
        REFERENCES accounts (account_id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT sign_ups_fingerprint_length CHECK (octet_length(fingerprint) = 32)
);
COMMENT ON TABLE sign_ups IS 'Sign-ups of the last day by request id, so that a repeat gets the first answer.';
COMMENT ON COLUMN sign_ups.fingerprint IS 'HMAC-SHA256 of the request body under a key that is not in the database: the body holds a password.';
CREATE INDEX sign_ups_expire_time_idx ON sign_ups (expire_time);
CREATE INDEX sign_ups_account_id_idx ON sign_ups (account_id);

CREATE TABLE sessions (
    session_id        text        NOT NULL,
    account_id        text        NOT NULL,
    create_time       timestamptz NOT NULL,
    token_expire_time timestamptz NOT NULL,
    end_time          timestamptz,
    CONSTRAINT sessions_pkey PRIMARY KEY (session_id),
    CONSTRAINT sessions_account_id_fkey FOREIGN KEY (account_id)
        REFERENCES accounts (account_id) ON DELETE CASCADE,
    CONSTRAINT sessions_token_expires_after_create CHECK (token_expire_time > create_time)
);
COMMENT ON TABLE sessions IS 'Log-ins whose tokens may still be valid.';
COMMENT ON COLUMN sessions.token_expire_time IS 'When its last access token expires.';
COMMENT ON COLUMN sessions.end_time IS 'When it was ended by log-out.';
CREATE INDEX sessions_token_expire_time_idx ON sessions (token_expire_time);
CREATE INDEX sessions_ended_idx ON sessions (token_expire_time) WHERE end_time IS NOT NULL;
CREATE INDEX sessions_account_id_idx ON sessions (account_id);

CREATE TABLE signing_keys (
    key_id             text        NOT NULL,
    public_key         bytea       NOT NULL,
    sealed_private_key bytea       NOT NULL,
    create_time        timestamptz NOT NULL,
    sign_from_time     timestamptz NOT NULL,
    expire_time        timestamptz,
    CONSTRAINT signing_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT signing_keys_public_key_length CHECK (octet_length(public_key) = 32),
    CONSTRAINT signing_keys_expires_after_signing CHECK (expire_time > sign_from_time)
);
COMMENT ON TABLE signing_keys IS 'Ed25519 keys that sign access tokens, shared by all instances.';
COMMENT ON COLUMN signing_keys.sealed_private_key IS 'Nonce and AES-256-GCM of the seed under the key encryption key, bound to key_id.';
COMMENT ON COLUMN signing_keys.expire_time IS 'Until when its tokens are accepted; set when its successor is published.';
-- Rotation is rare and under a lock; this says so to whoever forgets the lock.
CREATE UNIQUE INDEX signing_keys_one_without_successor ON signing_keys ((expire_time IS NULL)) WHERE expire_time IS NULL;

-- +goose Down

DROP TABLE signing_keys;
DROP TABLE sessions;
DROP TABLE sign_ups;
DROP TABLE accounts;
