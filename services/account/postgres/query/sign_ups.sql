-- name: SignUpAndName :one
-- One statement, one snapshot: an account that is there is never seen without
-- the sign-up that made it.
SELECT
    EXISTS (SELECT 1 FROM accounts AS named WHERE named.name_key = @name_key) AS name_taken,
    (s.request_id IS NOT NULL)::boolean AS found,
    coalesce(s.fingerprint, ''::bytea)::bytea AS fingerprint,
    coalesce(a.account_id, '')::text AS account_id,
    coalesce(a.name, '')::text AS name,
    a.create_time
FROM (SELECT 1) AS one
LEFT JOIN sign_ups AS s ON s.request_id = @request_id AND s.expire_time > @now
LEFT JOIN accounts AS a ON a.account_id = s.account_id;

-- name: ClaimRequestID :execrows
-- Waits for another transaction that claims the same id; no row when the id
-- belongs to a sign-up that has not expired.
INSERT INTO sign_ups AS s (request_id, fingerprint, account_id, expire_time)
VALUES (@request_id, @fingerprint, @account_id, @expire_time)
ON CONFLICT ON CONSTRAINT sign_ups_pkey DO UPDATE
SET fingerprint = excluded.fingerprint, account_id = excluded.account_id, expire_time = excluded.expire_time
WHERE s.expire_time <= @now;

-- name: SignUp :one
SELECT s.fingerprint, s.expire_time, a.account_id, a.name, a.create_time
FROM sign_ups AS s
JOIN accounts AS a ON a.account_id = s.account_id
WHERE s.request_id = @request_id;

-- name: SweepSignUps :execrows
DELETE FROM sign_ups
WHERE request_id IN (
    SELECT old.request_id FROM sign_ups AS old
    WHERE old.expire_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
