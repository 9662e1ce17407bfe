-- name: ClaimRequest :execrows
-- Waits for another transaction that claims the same id; no row when the id
-- belongs to a request that has not expired.
INSERT INTO requests AS r (caller_id, request_id, fingerprint, device_id, expire_time)
VALUES (@caller_id, @request_id, @fingerprint, @made_id, @expire_time)
ON CONFLICT ON CONSTRAINT requests_pkey DO UPDATE
SET fingerprint = excluded.fingerprint, device_id = excluded.device_id, expire_time = excluded.expire_time
WHERE r.expire_time <= @now;

-- name: Request :one
SELECT fingerprint, device_id AS made_id
FROM requests
WHERE caller_id = @caller_id AND request_id = @request_id;

-- name: LockOrganisation :exec
-- Until the transaction ends: nobody else adds a device to it.
SELECT pg_advisory_xact_lock(hashtextextended(@organisation_id::text, 0));

-- name: CountDevices :one
SELECT count(*) FROM devices
WHERE organisation_id = @organisation_id AND delete_time IS NULL;

-- name: InsertDevice :exec
INSERT INTO devices (
    device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px,
    loop_seconds, slot_seconds, price_minor, currency, time_zone, hours, revision, create_time, update_time
) VALUES (
    @device_id, @organisation_id, @name, @latitude, @longitude, @address, @venue_type, @width_px, @height_px,
    @loop_seconds, @slot_seconds, @price_minor, @currency, @time_zone, @hours, @revision, @create_time, @update_time
);

-- name: Device :one
-- Connected is who has a connection on an instance that was seen in the last 5
-- seconds.
SELECT sqlc.embed(d),
    coalesce(p.disconnect_time IS NULL AND i.seen_time > now() - interval '5 seconds', false)::boolean AS online,
    p.connect_time, p.disconnect_time, i.seen_time
FROM devices AS d
LEFT JOIN presence AS p ON p.device_id = d.device_id
LEFT JOIN instances AS i ON i.instance_id = p.instance_id
WHERE d.device_id = @device_id AND d.organisation_id = @organisation_id AND d.delete_time IS NULL;

-- name: Devices :many
SELECT sqlc.embed(d),
    coalesce(p.disconnect_time IS NULL AND i.seen_time > now() - interval '5 seconds', false)::boolean AS online,
    p.connect_time, p.disconnect_time, i.seen_time
FROM devices AS d
LEFT JOIN presence AS p ON p.device_id = d.device_id
LEFT JOIN instances AS i ON i.instance_id = p.instance_id
WHERE d.organisation_id = @organisation_id AND d.delete_time IS NULL
    AND (@before::text = '' OR d.device_id < @before::text)
    AND (@venue_type::text = '' OR d.venue_type = @venue_type::text OR starts_with(d.venue_type, @venue_type::text || '.'))
    AND (@name_contains::text = '' OR strpos(lower(d.name), lower(@name_contains::text)) > 0)
    AND (@group_id::text = '' OR EXISTS (
        SELECT FROM device_group_members AS m WHERE m.group_id = @group_id::text AND m.device_id = d.device_id))
    AND (@state::text = ''
        OR @state::text = 'CLAIMED' AND d.secret_hash IS NOT NULL
        OR @state::text = 'REVOKED' AND d.revoke_time IS NOT NULL
        OR @state::text = 'UNCLAIMED' AND d.secret_hash IS NULL AND d.revoke_time IS NULL)
ORDER BY d.device_id DESC
LIMIT @at_most;

-- name: SearchDevices :many
-- Of all organisations. West is greater than east for what lies across the 180th
-- meridian.
SELECT sqlc.embed(d),
    coalesce(p.disconnect_time IS NULL AND i.seen_time > now() - interval '5 seconds', false)::boolean AS online,
    p.connect_time, p.disconnect_time, i.seen_time
FROM devices AS d
LEFT JOIN presence AS p ON p.device_id = d.device_id
LEFT JOIN instances AS i ON i.instance_id = p.instance_id
WHERE d.delete_time IS NULL
    AND (@before::text = '' OR d.device_id < @before::text)
    AND (coalesce(cardinality(@device_ids::text[]), 0) = 0 OR d.device_id = ANY(@device_ids::text[]))
    AND (@organisation_id::text = '' OR d.organisation_id = @organisation_id::text)
    AND (@state::text = ''
        OR @state::text = 'CLAIMED' AND d.secret_hash IS NOT NULL
        OR @state::text = 'REVOKED' AND d.revoke_time IS NOT NULL
        OR @state::text = 'UNCLAIMED' AND d.secret_hash IS NULL AND d.revoke_time IS NULL)
    AND (@anywhere::boolean
        OR d.latitude BETWEEN @south::double precision AND @north::double precision
            AND CASE WHEN @west::double precision <= @east::double precision
                THEN d.longitude BETWEEN @west::double precision AND @east::double precision
                ELSE d.longitude >= @west::double precision OR d.longitude <= @east::double precision END)
    AND (coalesce(cardinality(@venue_types::text[]), 0) = 0 OR EXISTS (
        SELECT FROM (SELECT unnest(@venue_types::text[]) AS venue_type) AS v
        WHERE d.venue_type = v.venue_type OR starts_with(d.venue_type, v.venue_type || '.')))
    AND d.width_px >= @min_width_px::integer AND d.height_px >= @min_height_px::integer
ORDER BY d.device_id DESC
LIMIT @at_most;

-- name: LockDevice :one
-- Until the transaction ends; deleted ones, too.
SELECT sqlc.embed(d) FROM devices AS d
WHERE d.device_id = @device_id AND d.organisation_id = @organisation_id
FOR UPDATE;

-- name: UpdateDevice :exec
UPDATE devices SET
    name = @name, latitude = @latitude, longitude = @longitude, address = @address, venue_type = @venue_type,
    width_px = @width_px, height_px = @height_px, loop_seconds = @loop_seconds, slot_seconds = @slot_seconds,
    price_minor = @price_minor, currency = @currency, time_zone = @time_zone, hours = @hours,
    revision = revision + 1, update_time = @update_time
WHERE device_id = @device_id;

-- name: DeleteDevice :exec
UPDATE devices SET delete_time = @delete_time, secret_hash = NULL
WHERE device_id = @device_id;

-- name: SetSecret :exec
UPDATE devices SET secret_hash = @secret_hash, claim_time = @claim_time, revoke_time = NULL
WHERE device_id = @device_id;

-- name: RevokeSecret :exec
UPDATE devices SET secret_hash = NULL, revoke_time = @revoke_time
WHERE device_id = @device_id;

-- name: SecretsOf :many
-- Of those that can connect.
SELECT device_id, secret_hash FROM devices
WHERE device_id = ANY(@device_ids::text[]) AND secret_hash IS NOT NULL;

-- name: Notify :exec
SELECT pg_notify('device', @change::text);

-- name: SweepRequests :execrows
DELETE FROM requests
WHERE (caller_id, request_id) IN (
    SELECT old.caller_id, old.request_id FROM requests AS old
    WHERE old.expire_time <= @now
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
