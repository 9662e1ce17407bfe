-- name: OrganisationOf :one
SELECT organisation_id FROM devices WHERE device_id = @device_id;

-- name: Lines :many
-- All of a device, also those that are removed.
SELECT device_id, line_id, revision, first_date, last_date, dayparts, slots, start_time, end_time, showing, removed, taken_down
FROM booked_lines
WHERE device_id = @device_id;

-- name: Line :one
SELECT device_id, line_id, revision, first_date, last_date, dayparts, slots, start_time, end_time, showing, removed, taken_down
FROM booked_lines
WHERE device_id = @device_id AND line_id = @line_id;

-- name: LinesOn :many
-- What devices may have to show in a time.
SELECT device_id, line_id, revision, first_date, last_date, dayparts, slots, start_time, end_time, showing, removed, taken_down
FROM booked_lines
WHERE device_id = ANY(@device_ids::text[]) AND NOT removed AND showing IS NOT NULL
    AND start_time < @until_time AND end_time > @from_time
ORDER BY device_id, line_id;

-- name: ListLines :many
SELECT device_id, line_id, revision, first_date, last_date, dayparts, slots, start_time, end_time, showing, removed, taken_down
FROM booked_lines
WHERE NOT removed AND (device_id, line_id) > (@after_device::text, @after_line::text)
    AND (coalesce(cardinality(@device_ids::text[]), 0) = 0 OR device_id = ANY(@device_ids::text[]))
ORDER BY device_id, line_id
LIMIT @at_most;

-- name: PutLine :exec
INSERT INTO booked_lines (device_id, line_id, revision, first_date, last_date, dayparts, slots, start_time, end_time, showing, removed, taken_down)
VALUES (@device_id, @line_id, @revision, @first_date, @last_date, @dayparts, @slots, @start_time, @end_time, @showing, @removed, @taken_down)
ON CONFLICT ON CONSTRAINT booked_lines_pkey DO UPDATE
SET revision = excluded.revision, first_date = excluded.first_date, last_date = excluded.last_date, dayparts = excluded.dayparts,
    slots = excluded.slots, start_time = excluded.start_time, end_time = excluded.end_time, showing = excluded.showing, removed = excluded.removed,
    taken_down = excluded.taken_down;

-- name: RaisePlaylist :exec
-- What is booked has changed: the default playlist stays as it is.
INSERT INTO playlists AS p (device_id, version, items, update_time)
VALUES (@device_id, 1, '[]', @update_time)
ON CONFLICT ON CONSTRAINT playlists_pkey DO UPDATE
SET version = p.version + 1;

-- name: SumPlays :many
-- The ids of a line's showings begin with its own and "-", which "." comes after.
SELECT l.place::integer AS place, (CASE WHEN @by_day::boolean THEN to_char(h.hour_time AT TIME ZONE 'UTC', 'YYYY-MM-DD') ELSE '' END)::text AS day,
    sum(h.plays)::bigint AS plays, sum(h.counted)::bigint AS counted, sum(h.duration_ms)::bigint AS duration_ms
FROM (
    SELECT unnest(@places::integer[]) AS place, unnest(@device_ids::text[]) AS device_id, unnest(@line_ids::text[]) AS line_id,
        unnest(@from_times::timestamptz[]) AS from_time, unnest(@to_times::timestamptz[]) AS to_time
) AS l
JOIN plays_hourly AS h ON h.device_id = l.device_id
    AND h.creative_id COLLATE "C" >= l.line_id || '-' AND h.creative_id COLLATE "C" < l.line_id || '.'
    AND h.hour_time > l.from_time - interval '1 hour' AND h.hour_time < l.to_time
GROUP BY 1, 2
ORDER BY 1, 2;

-- name: SweepLines :execrows
DELETE FROM booked_lines
WHERE (device_id, line_id) IN (
    SELECT old.device_id, old.line_id FROM booked_lines AS old
    WHERE old.end_time < @before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
