-- name: AddPlayPartitions :one
SELECT add_play_partitions(@first_day::date, @last_day::date)::integer AS made;

-- name: DropPlayPartitions :one
SELECT drop_play_partitions(@first_kept::date)::integer AS dropped;

-- name: SlotsOf :many
-- With the organisation, if somebody watches its devices.
SELECT d.device_id, d.slot_seconds, (CASE WHEN EXISTS (
        SELECT FROM watches AS w WHERE w.organisation_id = d.organisation_id AND w.expire_time > now()
    ) THEN d.organisation_id ELSE '' END)::text AS watched_organisation_id
FROM devices AS d
WHERE d.device_id = ANY(@device_ids::text[]);

-- name: CreativesOf :many
SELECT device_id, creative_id, duration_ms FROM device_creatives
WHERE device_id = ANY(@device_ids::text[]) AND creative_id = ANY(@creative_ids::text[]);

-- name: InsertPlays :many
-- Repeats are left out, and only the others summed. Rows are locked in the same
-- order by all transactions.
WITH added AS (
    INSERT INTO plays (device_id, play_id, creative_id, start_time, duration_ms, counted, receive_time)
    SELECT n.device_id, n.play_id, n.creative_id, n.start_time, n.duration_ms, n.counted, @receive_time
    FROM (
        SELECT unnest(@device_ids::text[]) AS device_id, unnest(@play_ids::text[]) AS play_id, unnest(@creative_ids::text[]) AS creative_id,
            unnest(@start_times::timestamptz[]) AS start_time, unnest(@durations_ms::integer[]) AS duration_ms, unnest(@counted::boolean[]) AS counted
    ) AS n
    ORDER BY n.device_id, n.play_id
    ON CONFLICT ON CONSTRAINT plays_pkey DO NOTHING
    RETURNING device_id, play_id, creative_id, start_time, duration_ms, counted
), summed AS (
    INSERT INTO plays_hourly AS h (device_id, creative_id, hour_time, plays, counted, duration_ms)
    SELECT a.device_id, a.creative_id, date_trunc('hour', a.start_time, 'UTC'), count(*), count(*) FILTER (WHERE a.counted), sum(a.duration_ms)
    FROM added AS a
    GROUP BY 1, 2, 3
    ORDER BY 1, 3, 2
    ON CONFLICT ON CONSTRAINT plays_hourly_pkey DO UPDATE
    SET plays = h.plays + excluded.plays, counted = h.counted + excluded.counted, duration_ms = h.duration_ms + excluded.duration_ms
)
SELECT a.device_id, a.play_id FROM added AS a;

-- name: InsertRejectedPlays :exec
INSERT INTO rejected_plays (device_id, play_id, reason, play, receive_time)
SELECT DISTINCT ON (n.device_id, n.play_id, n.reason) n.device_id, n.play_id, n.reason, n.play, @receive_time::timestamptz
FROM (
    SELECT unnest(@device_ids::text[]) AS device_id, unnest(@play_ids::text[]) AS play_id,
        unnest(@reasons::text[]) AS reason, unnest(@plays::text[]) AS play
) AS n
ORDER BY n.device_id, n.play_id, n.reason
ON CONFLICT ON CONSTRAINT rejected_plays_pkey DO NOTHING;

-- name: Hours :many
SELECT device_id, creative_id, hour_time, plays, counted, duration_ms
FROM plays_hourly
WHERE device_id = @device_id
    AND (sqlc.narg(from_time)::timestamptz IS NULL OR hour_time >= sqlc.narg(from_time)::timestamptz)
    AND (sqlc.narg(to_time)::timestamptz IS NULL OR hour_time < sqlc.narg(to_time)::timestamptz)
    AND (sqlc.narg(after_hour)::timestamptz IS NULL OR hour_time < sqlc.narg(after_hour)::timestamptz
        OR hour_time = sqlc.narg(after_hour)::timestamptz AND creative_id > @after_creative::text)
ORDER BY hour_time DESC, creative_id
LIMIT @at_most;

-- name: Disagreements :many
-- Hours whose sums are not those of their plays.
SELECT coalesce(h.device_id, r.device_id)::text AS device_id,
    coalesce(h.hour_time, r.hour_time)::timestamptz AS hour_time,
    coalesce(h.creative_id, r.creative_id)::text AS creative_id,
    coalesce(h.plays, 0)::bigint AS summed, coalesce(r.plays, 0)::bigint AS stored
FROM (
    SELECT s.device_id, s.creative_id, s.hour_time, s.plays, s.counted, s.duration_ms FROM plays_hourly AS s
    WHERE s.hour_time >= @from_time AND s.hour_time < @to_time
) AS h
FULL JOIN (
    SELECT p.device_id, p.creative_id, date_trunc('hour', p.start_time, 'UTC')::timestamptz AS hour_time,
        count(*) AS plays, count(*) FILTER (WHERE p.counted) AS counted, sum(p.duration_ms)::bigint AS duration_ms
    FROM plays AS p
    WHERE p.start_time >= @from_time AND p.start_time < @to_time
    GROUP BY 1, 2, 3
) AS r ON r.device_id = h.device_id AND r.creative_id = h.creative_id AND r.hour_time = h.hour_time
WHERE h.plays IS DISTINCT FROM r.plays OR h.counted IS DISTINCT FROM r.counted OR h.duration_ms IS DISTINCT FROM r.duration_ms
ORDER BY 1, 2, 3
LIMIT @at_most;

-- name: SweepRejectedPlays :execrows
DELETE FROM rejected_plays
WHERE (device_id, play_id, reason) IN (
    SELECT old.device_id, old.play_id, old.reason FROM rejected_plays AS old
    WHERE old.receive_time < @before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
