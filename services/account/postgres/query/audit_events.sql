-- name: InsertEvent :exec
INSERT INTO audit_events (event_id, event_time, kind, account_id, organisation_id, actor_id, session_id, subject_id, role, address)
VALUES (@event_id, @event_time, @kind, nullif(sqlc.arg(account_id)::text, ''), nullif(sqlc.arg(organisation_id)::text, ''), @actor_id, @session_id, @subject_id, @role, @address);

-- name: AccountEvents :many
SELECT event_id, event_time, kind, coalesce(account_id, '')::text AS account_id, coalesce(organisation_id, '')::text AS organisation_id, actor_id, session_id, subject_id, role, address
FROM audit_events
WHERE account_id = sqlc.arg(account_id)::text AND (sqlc.arg(before)::text = '' OR event_id < sqlc.arg(before)::text)
ORDER BY event_id DESC
LIMIT @most;

-- name: OrganisationEvents :many
SELECT event_id, event_time, kind, coalesce(account_id, '')::text AS account_id, coalesce(organisation_id, '')::text AS organisation_id, actor_id, session_id, subject_id, role, address
FROM audit_events
WHERE organisation_id = sqlc.arg(organisation_id)::text AND (sqlc.arg(before)::text = '' OR event_id < sqlc.arg(before)::text)
ORDER BY event_id DESC
LIMIT @most;

-- name: SweepEvents :execrows
DELETE FROM audit_events
WHERE event_id IN (
    SELECT old.event_id FROM audit_events AS old
    WHERE old.event_time <= @before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
