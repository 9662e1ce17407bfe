-- name: LockAPIKey :one
-- Until the transaction ends.
SELECT api_key_id, organisation_id, name, role, secret_hash, creator_id, create_time, expire_time, use_time, token_expire_time, revoke_time
FROM api_keys
WHERE api_key_id = @api_key_id
FOR UPDATE;

-- name: PutAPIKey :exec
INSERT INTO api_keys AS k (api_key_id, organisation_id, name, role, secret_hash, creator_id, create_time, expire_time, use_time, token_expire_time, revoke_time)
VALUES (@api_key_id, @organisation_id, @name, @role, @secret_hash, @creator_id, @create_time, @expire_time, @use_time, @token_expire_time, @revoke_time)
ON CONFLICT ON CONSTRAINT api_keys_pkey DO UPDATE
SET use_time = excluded.use_time, token_expire_time = excluded.token_expire_time, revoke_time = excluded.revoke_time;

-- name: CountAPIKeys :one
SELECT count(*) FROM api_keys
WHERE organisation_id = @organisation_id AND revoke_time IS NULL AND expire_time > sqlc.arg(now)::timestamptz;

-- name: APIKeys :many
SELECT api_key_id, organisation_id, name, role, secret_hash, creator_id, create_time, expire_time, use_time, token_expire_time, revoke_time
FROM api_keys
WHERE organisation_id = @organisation_id AND (sqlc.arg(before)::text = '' OR api_key_id < sqlc.arg(before)::text)
ORDER BY api_key_id DESC
LIMIT @most;

-- name: SweepAPIKeys :execrows
DELETE FROM api_keys
WHERE api_key_id IN (
    SELECT old.api_key_id FROM api_keys AS old
    WHERE coalesce(old.revoke_time, old.expire_time) <= @over_before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
