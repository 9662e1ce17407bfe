-- +goose Up

ALTER TABLE accounts ADD COLUMN password_generation integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN accounts.password_generation IS 'How often the password was changed; a new hash of the same one does not count.';

-- The version before this one goes on opening sessions while it is replaced:
-- its sessions have no refresh token, and end with their access token.
ALTER TABLE sessions
    ADD COLUMN refresh_time timestamptz,
    ADD COLUMN refresh_hash bytea,
    ADD COLUMN expire_time  timestamptz,
    ADD COLUMN address      text NOT NULL DEFAULT '',
    ADD COLUMN end_reason   text,
    ADD CONSTRAINT sessions_refresh_hash_length CHECK (octet_length(refresh_hash) = 32),
    ADD CONSTRAINT sessions_address_length CHECK (char_length(address) <= 64);
COMMENT ON TABLE sessions IS 'Log-ins that can be used, or ended so lately that their owner may want to know.';
COMMENT ON COLUMN sessions.refresh_time IS 'When its newest access token was made.';
COMMENT ON COLUMN sessions.refresh_hash IS 'SHA-256 of its newest refresh token.';
COMMENT ON COLUMN sessions.expire_time IS 'Until when it can be refreshed.';
COMMENT ON COLUMN sessions.address IS 'Where it was opened from, as the gateway saw it.';
COMMENT ON COLUMN sessions.end_time IS 'When it was ended before it expired; end_reason says why.';
CREATE INDEX sessions_account_idx ON sessions (account_id, session_id);
CREATE INDEX sessions_address_idx ON sessions (account_id, address);
CREATE INDEX sessions_over_idx ON sessions ((coalesce(end_time, expire_time, token_expire_time)));
DROP INDEX sessions_account_id_idx;

CREATE TABLE log_in_failures (
    failure_key text        NOT NULL,
    free_time   timestamptz NOT NULL,
    CONSTRAINT log_in_failures_pkey PRIMARY KEY (failure_key)
);
COMMENT ON TABLE log_in_failures IS 'What wrong passwords have used up of the budget that there is for each name, address, place and device.';
COMMENT ON COLUMN log_in_failures.failure_key IS 'A MAC under a key that is not in the database: it says nothing about who tried what.';
COMMENT ON COLUMN log_in_failures.free_time IS 'When the budget is whole again.';
CREATE INDEX log_in_failures_free_time_idx ON log_in_failures (free_time);

CREATE TABLE audit_events (
    event_id   text        NOT NULL,
    event_time timestamptz NOT NULL,
    kind       text        NOT NULL,
    account_id text,
    actor_id   text        NOT NULL,
    session_id text        NOT NULL,
    address    text        NOT NULL,
    CONSTRAINT audit_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT audit_events_account_id_fkey FOREIGN KEY (account_id)
        REFERENCES accounts (account_id) ON DELETE CASCADE,
    CONSTRAINT audit_events_kind_is_upper CHECK (kind ~ '^[A-Z][A-Z_]{2,63}$'),
    CONSTRAINT audit_events_address_length CHECK (char_length(address) <= 64)
);
COMMENT ON TABLE audit_events IS 'What happened to accounts, for whom it concerns. Rows are never changed.';
COMMENT ON COLUMN audit_events.account_id IS 'The account it happened to.';
COMMENT ON COLUMN audit_events.actor_id IS 'The account or API key that did it; empty where it is not known.';
CREATE INDEX audit_events_account_idx ON audit_events (account_id, event_id);
CREATE INDEX audit_events_event_time_idx ON audit_events (event_time);

-- +goose Down

DROP TABLE audit_events;
DROP TABLE log_in_failures;
CREATE INDEX sessions_account_id_idx ON sessions (account_id);
DROP INDEX sessions_over_idx;
DROP INDEX sessions_address_idx;
DROP INDEX sessions_account_idx;
ALTER TABLE sessions
    DROP CONSTRAINT sessions_address_length,
    DROP CONSTRAINT sessions_refresh_hash_length,
    DROP COLUMN end_reason,
    DROP COLUMN address,
    DROP COLUMN expire_time,
    DROP COLUMN refresh_hash,
    DROP COLUMN refresh_time;
ALTER TABLE accounts DROP COLUMN password_generation;
