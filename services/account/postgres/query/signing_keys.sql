-- name: LockSigningKeys :exec
-- Until the transaction ends. The number is the lock's name.
SELECT pg_advisory_xact_lock(@lock);

-- name: SigningKeys :many
SELECT key_id, public_key, sealed_private_key, create_time, sign_from_time, expire_time
FROM signing_keys
WHERE expire_time IS NULL OR expire_time > @now::timestamptz;

-- name: InsertSigningKey :exec
INSERT INTO signing_keys (key_id, public_key, sealed_private_key, create_time, sign_from_time)
VALUES (@key_id, @public_key, @sealed_private_key, @create_time, @sign_from_time);

-- name: SetSigningKeyExpiry :exec
UPDATE signing_keys
SET expire_time = @expire_time::timestamptz
WHERE key_id = @key_id;

-- name: SweepSigningKeys :execrows
DELETE FROM signing_keys
WHERE expire_time <= @now::timestamptz;
