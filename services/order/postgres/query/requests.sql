-- name: ClaimRequest :execrows
-- Waits for another transaction that claims the same id; no row when the id
-- belongs to a request that has not expired.
INSERT INTO requests AS r (caller_id, request_id, fingerprint, made_id, expire_time)
VALUES (@caller_id, @request_id, @fingerprint, @made_id, @expire_time)
ON CONFLICT ON CONSTRAINT requests_pkey DO UPDATE
SET fingerprint = excluded.fingerprint, made_id = excluded.made_id, expire_time = excluded.expire_time
WHERE r.expire_time <= @now;

-- name: Request :one
SELECT fingerprint, made_id
FROM requests
WHERE caller_id = @caller_id AND request_id = @request_id;

-- name: SweepRequests :execrows
DELETE FROM requests
WHERE (caller_id, request_id) IN (
    SELECT old.caller_id, old.request_id FROM requests AS old
    WHERE old.expire_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
