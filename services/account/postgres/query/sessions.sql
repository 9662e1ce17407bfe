-- name: InsertSession :execrows
-- The session and its event in one statement. No row when the password was
-- changed after it was verified: FOR SHARE waits for a change that is under way,
-- and keeps one from missing this session.
WITH opened AS (
    INSERT INTO sessions (session_id, account_id, create_time, refresh_time, token_expire_time, refresh_hash, expire_time, address)
    SELECT @session_id, a.account_id, @create_time, sqlc.arg(refresh_time)::timestamptz, @token_expire_time, @refresh_hash, sqlc.arg(expire_time)::timestamptz, sqlc.arg(address)::text
    FROM accounts AS a
    WHERE a.account_id = @account_id AND a.password_generation = @password_generation
    FOR SHARE
    RETURNING session_id, account_id, address
)
INSERT INTO audit_events (event_id, event_time, kind, account_id, actor_id, session_id, address)
SELECT sqlc.arg(event_id)::text, sqlc.arg(event_time)::timestamptz, sqlc.arg(kind)::text, opened.account_id, opened.account_id, opened.session_id, opened.address
FROM opened;

-- name: LockSession :one
-- Until the transaction ends.
SELECT session_id, account_id, create_time,
    coalesce(refresh_time, create_time)::timestamptz AS refresh_time, token_expire_time, refresh_hash,
    coalesce(expire_time, token_expire_time)::timestamptz AS expire_time, address, end_time, coalesce(end_reason, '')::text AS end_reason
FROM sessions
WHERE session_id = @session_id
FOR UPDATE;

-- name: UpdateSession :exec
UPDATE sessions
SET refresh_time = @refresh_time::timestamptz, token_expire_time = @token_expire_time, refresh_hash = @refresh_hash,
    expire_time = @expire_time::timestamptz, end_time = @end_time, end_reason = nullif(@end_reason::text, '')
WHERE session_id = @session_id;

-- name: Sessions :many
SELECT session_id, account_id, create_time,
    coalesce(refresh_time, create_time)::timestamptz AS refresh_time, token_expire_time, refresh_hash,
    coalesce(expire_time, token_expire_time)::timestamptz AS expire_time, address, end_time, coalesce(end_reason, '')::text AS end_reason
FROM sessions
WHERE account_id = @account_id AND (sqlc.arg(before)::text = '' OR session_id < sqlc.arg(before)::text)
ORDER BY session_id DESC
LIMIT @most;

-- name: EndOtherSessions :many
-- A batch of those that are behind the newest.
UPDATE sessions
SET end_time = sqlc.arg(now)::timestamptz, end_reason = @end_reason::text
WHERE end_time IS NULL AND session_id IN (
    SELECT other.session_id FROM sessions AS other
    WHERE other.account_id = @account_id AND other.session_id <> @keep_session_id AND other.end_time IS NULL
        AND coalesce(other.expire_time, other.token_expire_time) > sqlc.arg(now)::timestamptz
    ORDER BY other.session_id DESC
    OFFSET sqlc.arg(newest)::bigint
    LIMIT sqlc.arg(batch)::bigint
)
RETURNING session_id, token_expire_time;

-- name: EndOldestSessions :many
-- A batch of those that are behind the newest; not those that another log-in ends
-- at this moment.
UPDATE sessions
SET end_time = sqlc.arg(now)::timestamptz, end_reason = @end_reason::text
WHERE session_id IN (
    SELECT old.session_id FROM sessions AS old
    WHERE old.end_time IS NULL AND old.session_id IN (
        SELECT other.session_id FROM sessions AS other
        WHERE other.account_id = @account_id AND other.session_id <> @keep_session_id AND other.end_time IS NULL
            AND coalesce(other.expire_time, other.token_expire_time) > sqlc.arg(now)::timestamptz
        ORDER BY other.session_id DESC
        OFFSET sqlc.arg(newest)::bigint
        LIMIT sqlc.arg(batch)::bigint
    )
    FOR UPDATE SKIP LOCKED
)
RETURNING session_id, token_expire_time;

-- name: Ended :many
-- One statement, since it is asked every other second by every instance, and what
-- is late is not handed on: the ended sessions, the revoked API keys, which are
-- the sessions of their tokens, and the accounts whose roles changed, which alone
-- have a version.
SELECT session_id AS id, 0::bigint AS roles_version, token_expire_time AS since
FROM sessions
WHERE end_time IS NOT NULL AND token_expire_time > sqlc.arg(expired_after)::timestamptz
UNION ALL
SELECT api_key_id, 0, token_expire_time
FROM api_keys
WHERE revoke_time IS NOT NULL AND token_expire_time > sqlc.arg(expired_after)::timestamptz
UNION ALL
SELECT account_id, roles_version, roles_change_time
FROM accounts
WHERE roles_change_time > sqlc.arg(changed_after)::timestamptz;

-- name: SweepSessions :execrows
DELETE FROM sessions
WHERE session_id IN (
    SELECT old.session_id FROM sessions AS old
    WHERE coalesce(old.end_time, old.expire_time, old.token_expire_time) <= @over_before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
