-- name: KeepWatched :exec
INSERT INTO watches (organisation_id, expire_time)
SELECT w.organisation_id, now() + make_interval(secs => @seconds::double precision)
FROM (SELECT unnest(@organisation_ids::text[]) AS organisation_id) AS w
ORDER BY w.organisation_id
ON CONFLICT ON CONSTRAINT watches_pkey DO UPDATE SET expire_time = excluded.expire_time;

-- name: Statuses :many
SELECT d.device_id, d.organisation_id, d.name, d.revision, (d.secret_hash IS NOT NULL)::boolean AS claimed, d.revoke_time, d.delete_time,
    coalesce(p.disconnect_time IS NULL AND i.seen_time > now() - interval '5 seconds', false)::boolean AS online,
    p.connect_time, p.disconnect_time, i.seen_time, coalesce(l.version, 0)::bigint AS playlist_version
FROM devices AS d
LEFT JOIN presence AS p ON p.device_id = d.device_id
LEFT JOIN instances AS i ON i.instance_id = p.instance_id
LEFT JOIN playlists AS l ON l.device_id = d.device_id
WHERE d.organisation_id = @organisation_id AND d.delete_time IS NULL
    AND (cardinality(@device_ids::text[]) = 0 OR d.device_id = ANY(@device_ids::text[]))
    AND (@before::text = '' OR d.device_id < @before::text)
ORDER BY d.device_id DESC
LIMIT @at_most;

-- name: ChangedStatuses :many
-- Deleted ones, too.
SELECT d.device_id, d.organisation_id, d.name, d.revision, (d.secret_hash IS NOT NULL)::boolean AS claimed, d.revoke_time, d.delete_time,
    coalesce(p.disconnect_time IS NULL AND i.seen_time > now() - interval '5 seconds', false)::boolean AS online,
    p.connect_time, p.disconnect_time, i.seen_time, coalesce(l.version, 0)::bigint AS playlist_version
FROM devices AS d
LEFT JOIN presence AS p ON p.device_id = d.device_id
LEFT JOIN instances AS i ON i.instance_id = p.instance_id
LEFT JOIN playlists AS l ON l.device_id = d.device_id
WHERE d.device_id = ANY(@device_ids::text[]) AND d.organisation_id = ANY(@organisation_ids::text[]);

-- name: Instances :many
-- For how long each is believed to run, if it is not seen again.
SELECT instance_id, (extract(epoch FROM seen_time + interval '5 seconds' - now()) * 1000000)::bigint AS left_us
FROM instances;

-- name: PlayersAt :many
-- An instance that died may not have told of the last connections that ended.
SELECT p.device_id FROM presence AS p
JOIN devices AS d ON d.device_id = p.device_id
WHERE p.instance_id = ANY(@instance_ids::text[]) AND (p.disconnect_time IS NULL OR p.disconnect_time > now() - interval '1 minute')
    AND d.organisation_id = ANY(@organisation_ids::text[]) AND d.delete_time IS NULL;

-- name: NotifyAll :exec
SELECT pg_notify('device', n.change) FROM (SELECT unnest(@changes::text[]) AS change) AS n;

-- name: SweepWatches :execrows
DELETE FROM watches WHERE expire_time < now() - interval '1 hour';
