-- name: LockCreativesOf :exec
-- Until the transaction ends: nobody else makes a creative for the organisation. The
-- first number is no other lock's.
SELECT pg_advisory_xact_lock(2, hashtext(@organisation_id::text));

-- name: CountCreatives :one
SELECT count(*) FROM creatives
WHERE organisation_id = @organisation_id AND take_down_time IS NULL;

-- name: RepeatedRequest :one
SELECT fingerprint, made_id FROM requests
WHERE caller_id = @caller_id AND request_id = @request_id AND expire_time > @now;

-- name: InsertCreative :exec
INSERT INTO creatives (creative_id, organisation_id, title, version, create_time)
VALUES (@creative_id, @organisation_id, @title, @version, @create_time);

-- name: InsertCreativeVersion :exec
INSERT INTO creative_versions (creative_id, version, text_content, sha256, media_type, width_px, height_px, duration_ms, thumbnail, create_time)
VALUES (@creative_id, @version, @text_content, @sha256, @media_type, @width_px, @height_px, @duration_ms, @thumbnail, @create_time);

-- name: LockCreative :one
-- Until the transaction ends nobody else changes it, its approvals, or which booked
-- lines show it. Who locks a creative and lines locks the creative first.
SELECT organisation_id FROM creatives
WHERE creative_id = @creative_id
FOR NO KEY UPDATE;

-- name: ShareCreative :one
-- Until the transaction ends nobody changes it or its approvals.
SELECT organisation_id FROM creatives
WHERE creative_id = @creative_id
FOR SHARE;

-- name: Creative :one
SELECT sqlc.embed(c), sqlc.embed(v)
FROM creatives AS c
JOIN creative_versions AS v ON v.creative_id = c.creative_id AND v.version = c.version
WHERE c.creative_id = @creative_id AND c.organisation_id = @organisation_id;

-- name: Creatives :many
SELECT sqlc.embed(c), sqlc.embed(v)
FROM creatives AS c
JOIN creative_versions AS v ON v.creative_id = c.creative_id AND v.version = c.version
WHERE c.organisation_id = @organisation_id AND (@before::text = '' OR c.creative_id < @before::text)
ORDER BY c.creative_id DESC
LIMIT @at_most;

-- name: CreativeVersions :many
SELECT sqlc.embed(v)
FROM creative_versions AS v
WHERE v.creative_id = @creative_id
ORDER BY v.version DESC;

-- name: ChangeCreative :exec
UPDATE creatives SET title = @title, version = @version
WHERE creative_id = @creative_id;

-- name: TakeDownCreative :exec
UPDATE creatives SET take_down_time = @take_down_time::timestamptz
WHERE creative_id = @creative_id AND take_down_time IS NULL;

-- name: LinesWithShorterSlots :many
-- Lines that are still to show a creative, of displays whose slots are shorter.
SELECT l.line_id FROM lines AS l
JOIN orders AS o ON o.order_id = l.order_id
WHERE l.creative_id = @creative_id::text AND l.slot_seconds < @seconds::float8 AND l.end_time > @now
    AND (o.state = 'BOOKED' OR (o.state = 'HELD' AND o.hold_expire_time > now()))
ORDER BY l.line_id
LIMIT 1;

-- name: BookedLinesOfCreative :many
-- Those that are not over, of one owner's displays or, with an empty owner, of all.
SELECT l.line_id FROM lines AS l
JOIN orders AS o ON o.order_id = l.order_id
WHERE l.creative_id = @creative_id::text AND l.booked AND o.state = 'BOOKED' AND l.end_time > @now
    AND (@owner_id::text = '' OR l.owner_id = @owner_id::text)
ORDER BY l.line_id;

-- name: SetLineCreative :exec
UPDATE lines SET creative_id = nullif(@creative_id::text, '')
WHERE line_id = ANY(@line_ids::text[]);
