-- name: InsertCommands :exec
-- Those with a result are not sent, and have the detail.
INSERT INTO device_commands (
    command_id, device_id, group_id, group_command_id, kind, duration_ms, creative_id, playlist_version,
    create_time, expire_time, reply_time, result, detail
)
SELECT n.command_id, n.device_id, @group_id::text, @group_command_id::text, @kind::text, @duration_ms::integer, @creative_id::text, n.playlist_version,
    @create_time::timestamptz, @expire_time::timestamptz, CASE WHEN n.result <> '' THEN @create_time::timestamptz END, n.result,
    CASE WHEN n.result <> '' THEN @detail::text ELSE '' END
FROM (
    SELECT unnest(@command_ids::text[]) AS command_id, unnest(@device_ids::text[]) AS device_id,
        unnest(@playlist_versions::bigint[]) AS playlist_version, unnest(@results::text[]) AS result
) AS n;

-- name: CountOpenCommands :many
SELECT device_id, count(*) AS commands FROM device_commands
WHERE device_id = ANY(@device_ids::text[]) AND result = '' AND expire_time > @now
GROUP BY device_id;

-- name: Command :one
SELECT command_id, device_id, group_id, group_command_id, kind, duration_ms, creative_id, playlist_version,
    create_time, expire_time, send_time, reply_time, result, detail
FROM device_commands
WHERE command_id = @command_id AND device_id = @device_id;

-- name: CommandImage :one
SELECT image FROM device_commands WHERE command_id = @command_id;

-- name: Commands :many
SELECT command_id, device_id, group_id, group_command_id, kind, duration_ms, creative_id, playlist_version,
    create_time, expire_time, send_time, reply_time, result, detail
FROM device_commands
WHERE device_id = @device_id AND (@before::text = '' OR command_id < @before::text)
ORDER BY command_id DESC
LIMIT @at_most;

-- name: OpenCommands :many
SELECT command_id, device_id, group_id, group_command_id, kind, duration_ms, creative_id, playlist_version,
    create_time, expire_time, send_time, reply_time, result, detail
FROM device_commands
WHERE device_id = ANY(@device_ids::text[]) AND result = '' AND expire_time > @now
ORDER BY create_time, command_id;

-- name: OpenGroupCommands :many
SELECT command_id, device_id, group_id, group_command_id, kind, duration_ms, creative_id, playlist_version,
    create_time, expire_time, send_time, reply_time, result, detail
FROM device_commands
WHERE group_command_id = @group_command_id AND group_command_id <> '' AND result = '' AND expire_time > @now
ORDER BY device_id;

-- name: GroupCommand :one
SELECT c.group_command_id, c.group_id, c.kind, c.duration_ms, c.creative_id, c.create_time, c.expire_time, count(*) AS devices,
    count(*) FILTER (WHERE c.result = 'DONE') AS done,
    count(*) FILTER (WHERE c.result = 'DECLINED') AS declined,
    count(*) FILTER (WHERE c.result = 'FAILED') AS failed,
    count(*) FILTER (WHERE c.result = '' AND c.expire_time <= @now) AS expired,
    count(*) FILTER (WHERE c.result = '' AND c.expire_time > @now AND c.send_time IS NOT NULL) AS sent
FROM device_commands AS c
JOIN devices AS d ON d.device_id = c.device_id
WHERE c.group_command_id = @group_command_id AND c.group_command_id <> ''
    AND c.group_id = @group_id AND d.organisation_id = @organisation_id
GROUP BY c.group_command_id, c.group_id, c.kind, c.duration_ms, c.creative_id, c.create_time, c.expire_time;

-- name: CommandsSent :exec
UPDATE device_commands SET send_time = @send_time
WHERE command_id = ANY(@command_ids::text[]) AND send_time IS NULL;

-- name: StoreReply :one
-- No row when the device has no such command that is open. A picture belongs to a
-- screenshot alone, and a screenshot that is done has one.
UPDATE device_commands SET
    result = CASE WHEN kind = 'SCREENSHOT' AND @result::text = 'DONE' AND sqlc.narg(image)::bytea IS NULL THEN 'FAILED' ELSE @result::text END,
    detail = CASE WHEN kind = 'SCREENSHOT' AND @result::text = 'DONE' AND sqlc.narg(image)::bytea IS NULL THEN 'the player sent no image' ELSE @detail::text END,
    image = CASE WHEN kind = 'SCREENSHOT' THEN sqlc.narg(image)::bytea END,
    send_time = coalesce(send_time, @now::timestamptz), reply_time = @now::timestamptz
WHERE command_id = @command_id AND device_id = @device_id AND result = '' AND expire_time > @now::timestamptz
RETURNING result;

-- name: SweepCommands :execrows
DELETE FROM device_commands
WHERE command_id IN (
    SELECT old.command_id FROM device_commands AS old
    WHERE old.expire_time < @before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
