-- name: DeleteExpiredReservations :exec
-- Holds that are over on these displays, swept or not.
DELETE FROM reservations AS r
USING (SELECT unnest(@display_numbers::bigint[]) AS display_number) AS d
WHERE r.place && int8range(d.display_number * 4096, (d.display_number + 1) * 4096)
    AND r.hold_expire_time <= now();

-- name: TakenPlaces :batchmany
-- The places from one to before another that somebody has at some of these times.
SELECT DISTINCT lower(place)::bigint AS place FROM reservations
WHERE place && int8range(@from_place::bigint, @until_place::bigint) AND times && @times;

-- name: InsertReservations :exec
INSERT INTO reservations (line_id, place, times, hold_expire_time)
SELECT l.line_id, int8range(p.place, p.place + 1), l.times, @hold_expire_time::timestamptz
FROM (SELECT unnest(@line_ids::text[]) AS line_id, unnest(@places::bigint[]) AS place) AS p
JOIN lines AS l ON l.line_id = p.line_id;

-- name: BookReservations :execrows
UPDATE reservations SET hold_expire_time = NULL
WHERE line_id = ANY(@line_ids::text[]) AND hold_expire_time IS NOT NULL;

-- name: DeleteReservations :exec
DELETE FROM reservations
WHERE line_id = ANY(@line_ids::text[]);

-- name: CutReservations :exec
-- To what their lines are.
UPDATE reservations AS r SET times = l.times
FROM lines AS l
WHERE l.line_id = r.line_id AND l.line_id = ANY(@line_ids::text[]);

-- name: SweepReservations :execrows
DELETE FROM reservations
WHERE (line_id, place) IN (
    SELECT old.line_id, old.place FROM reservations AS old
    WHERE old.hold_expire_time <= now()
    ORDER BY old.hold_expire_time
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
