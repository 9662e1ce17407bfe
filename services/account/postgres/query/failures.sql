-- name: Failures :many
SELECT failure_key, free_time
FROM log_in_failures
WHERE failure_key = ANY(@keys::text[]);

-- name: AddFailure :exec
INSERT INTO log_in_failures AS f (failure_key, free_time)
VALUES (@failure_key, sqlc.arg(now)::timestamptz + make_interval(secs => sqlc.arg(every_seconds)::float8))
ON CONFLICT ON CONSTRAINT log_in_failures_pkey DO UPDATE
SET free_time = greatest(f.free_time, sqlc.arg(now)::timestamptz) + make_interval(secs => sqlc.arg(every_seconds)::float8);

-- name: SweepFailures :execrows
DELETE FROM log_in_failures
WHERE failure_key IN (
    SELECT old.failure_key FROM log_in_failures AS old
    WHERE old.free_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
