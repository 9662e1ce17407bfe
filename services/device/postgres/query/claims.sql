-- name: PutClaimCode :exec
INSERT INTO claim_codes (device_id, code_hash, create_time, expire_time)
VALUES (@device_id, @code_hash, @create_time, @expire_time)
ON CONFLICT ON CONSTRAINT claim_codes_pkey DO UPDATE
SET code_hash = excluded.code_hash, create_time = excluded.create_time, expire_time = excluded.expire_time;

-- name: LockDeviceOfClaimCode :one
-- Until the transaction ends. The code may be gone by then.
SELECT sqlc.embed(d) FROM devices AS d
WHERE d.device_id = (
    SELECT c.device_id FROM claim_codes AS c
    WHERE c.code_hash = @code_hash AND c.expire_time > @now
)
FOR UPDATE;

-- name: TakeClaimCode :one
-- Of two that use a code at once one finds it.
DELETE FROM claim_codes
WHERE code_hash = @code_hash AND expire_time > @now
RETURNING device_id;

-- name: DeleteClaimCode :exec
DELETE FROM claim_codes WHERE device_id = @device_id;

-- name: ClaimFailures :many
SELECT key, free_time FROM claim_failures WHERE key = ANY(@keys::text[]);

-- name: CountClaimFailure :exec
-- free_time is the cost behind now.
INSERT INTO claim_failures AS f (key, free_time)
VALUES (@key, @free_time)
ON CONFLICT ON CONSTRAINT claim_failures_pkey DO UPDATE
SET free_time = greatest(f.free_time + make_interval(secs => @cost_seconds::double precision), excluded.free_time);

-- name: SweepClaimCodes :execrows
DELETE FROM claim_codes
WHERE device_id IN (
    SELECT old.device_id FROM claim_codes AS old
    WHERE old.expire_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);

-- name: SweepClaimFailures :execrows
DELETE FROM claim_failures
WHERE key IN (
    SELECT old.key FROM claim_failures AS old
    WHERE old.free_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
