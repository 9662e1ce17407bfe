-- name: Displays :many
SELECT sqlc.embed(d) FROM displays AS d
WHERE d.device_id = ANY(@device_ids::text[]);

-- name: LockDisplays :exec
-- Until the transaction ends, one after the other in the order of their numbers, which
-- a query that sorts keeps to: nobody else changes what is reserved on them. Other
-- advisory locks have two numbers.
SELECT pg_advisory_xact_lock(n.display_number)
FROM (
    SELECT display_number FROM displays
    WHERE device_id = ANY(@device_ids::text[])
    ORDER BY display_number
) AS n;

-- name: SearchDisplays :many
-- West is greater than east for what lies across the 180th meridian.
SELECT sqlc.embed(d) FROM displays AS d
WHERE d.playable AND d.device_id > @after
    AND (coalesce(cardinality(@device_ids::text[]), 0) = 0 OR d.device_id = ANY(@device_ids::text[]))
    AND (@anywhere::boolean
        OR d.latitude BETWEEN @south::double precision AND @north::double precision
            AND CASE WHEN @west::double precision <= @east::double precision
                THEN d.longitude BETWEEN @west::double precision AND @east::double precision
                ELSE d.longitude >= @west::double precision OR d.longitude <= @east::double precision END)
    AND (coalesce(cardinality(@venue_types::text[]), 0) = 0 OR EXISTS (
        SELECT FROM (SELECT unnest(@venue_types::text[]) AS venue_type) AS v
        WHERE d.venue_type = v.venue_type OR starts_with(d.venue_type, v.venue_type || '.')))
    AND (@orientation::text = '' OR @orientation::text = CASE WHEN d.width_px >= d.height_px THEN 'LANDSCAPE' ELSE 'PORTRAIT' END)
    AND d.width_px >= @min_width_px::integer AND d.height_px >= @min_height_px::integer
    AND (@max_currency::text = '' OR d.currency = @max_currency::text AND d.price_minor <= @max_price_minor::bigint)
ORDER BY d.device_id
LIMIT @at_most;

-- name: TakenCounts :many
-- How many of the first slots of each display somebody has at some moment of a set of
-- times.
WITH sets AS MATERIALIZED (
    SELECT s.set_number, s.times::tstzmultirange AS times
    FROM (SELECT unnest(@set_numbers::integer[]) AS set_number, unnest(@sets::text[]) AS times) AS s
)
SELECT w.display_number::bigint AS display_number, count(DISTINCT r.place) AS taken
FROM (
    SELECT unnest(@display_numbers::bigint[]) AS display_number, unnest(@slots::bigint[]) AS slots, unnest(@display_sets::integer[]) AS set_number
) AS w
JOIN sets AS s ON s.set_number = w.set_number
JOIN reservations AS r
    ON r.place && int8range(w.display_number * 4096, w.display_number * 4096 + w.slots) AND r.times && s.times
WHERE r.hold_expire_time IS NULL OR r.hold_expire_time > now()
GROUP BY w.display_number;

-- name: Clock :one
SELECT now()::timestamptz AS clock;

-- name: PutDisplay :execrows
-- What is older than what is known changes nothing: settings with a lower revision,
-- and a list that was read before something was told.
INSERT INTO displays AS d (
    device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px,
    loop_seconds, slot_seconds, price_minor, currency, time_zone, hours, revision, playable, update_time
) VALUES (
    @device_id, @organisation_id, @name, @latitude, @longitude, @address, @venue_type, @width_px, @height_px,
    @loop_seconds, @slot_seconds, @price_minor, @currency, @time_zone, @hours, @revision, @playable,
    coalesce(sqlc.narg('read_time')::timestamptz, now())
)
ON CONFLICT ON CONSTRAINT displays_pkey DO UPDATE SET
    organisation_id = excluded.organisation_id, name = excluded.name, latitude = excluded.latitude, longitude = excluded.longitude,
    address = excluded.address, venue_type = excluded.venue_type, width_px = excluded.width_px, height_px = excluded.height_px,
    loop_seconds = excluded.loop_seconds, slot_seconds = excluded.slot_seconds, price_minor = excluded.price_minor,
    currency = excluded.currency, time_zone = excluded.time_zone, hours = excluded.hours, revision = excluded.revision,
    playable = excluded.playable, update_time = excluded.update_time
WHERE d.revision <= excluded.revision
    AND (sqlc.narg('read_time')::timestamptz IS NULL OR d.update_time < sqlc.narg('read_time')::timestamptz);

-- name: WithdrawDisplays :execrows
-- Those of a range of ids that a list of it does not have.
UPDATE displays SET playable = false, update_time = @read_time
WHERE playable AND update_time < @read_time
    AND (@before::text = '' OR device_id < @before::text) AND device_id >= @from_id::text
    AND NOT (device_id = ANY(@device_ids::text[]));

-- name: TrySyncLock :one
SELECT pg_try_advisory_lock(2, hashtext('displays'));

-- name: SyncUnlock :exec
SELECT pg_advisory_unlock(2, hashtext('displays'));
