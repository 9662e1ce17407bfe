-- name: InsertSession :exec
INSERT INTO sessions (session_id, account_id, create_time, token_expire_time)
VALUES (@session_id, @account_id, @create_time, @token_expire_time);

-- name: EndSession :one
UPDATE sessions
SET end_time = coalesce(end_time, @now::timestamptz)
WHERE session_id = @session_id
RETURNING token_expire_time;

-- name: EndedSessions :many
SELECT session_id, token_expire_time
FROM sessions
WHERE end_time IS NOT NULL AND token_expire_time > @expired_after;

-- name: SweepSessions :execrows
DELETE FROM sessions
WHERE session_id IN (
    SELECT old.session_id FROM sessions AS old
    WHERE old.token_expire_time <= @expired_before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
