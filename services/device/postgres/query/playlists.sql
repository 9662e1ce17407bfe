-- name: Playlist :one
SELECT version, items, update_time FROM playlists WHERE device_id = @device_id;

-- name: PutPlaylist :one
INSERT INTO playlists AS p (device_id, version, items, update_time)
VALUES (@device_id, 1, @items, @update_time)
ON CONFLICT ON CONSTRAINT playlists_pkey DO UPDATE
SET version = p.version + 1, items = excluded.items, update_time = excluded.update_time
RETURNING version;

-- name: PutCreative :exec
INSERT INTO device_creatives AS c (device_id, creative_id, duration_ms)
VALUES (@device_id, @creative_id, @duration_ms)
ON CONFLICT ON CONSTRAINT device_creatives_pkey DO UPDATE
SET duration_ms = least(c.duration_ms, excluded.duration_ms);

-- name: PlaylistVersions :many
SELECT device_id, version FROM playlists WHERE device_id = ANY(@device_ids::text[]);

-- name: Programmes :many
SELECT p.device_id, p.version, p.items, p.update_time, d.revision, d.time_zone, d.hours, d.loop_seconds, d.slot_seconds
FROM playlists AS p
JOIN devices AS d ON d.device_id = p.device_id
WHERE p.device_id = ANY(@device_ids::text[]);

-- name: Editions :many
SELECT p.device_id, p.version, d.revision
FROM playlists AS p
JOIN devices AS d ON d.device_id = p.device_id
WHERE p.device_id = ANY(@device_ids::text[]);
