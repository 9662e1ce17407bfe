-- name: LockLinesToTell :exec
-- Until the transaction ends nobody else tells of them, or changes them: that keeps
-- their events in the order of their changes. In the order in which everybody locks
-- lines.
SELECT line_id
FROM lines
WHERE line_id = ANY(@line_ids::text[])
ORDER BY order_id, line_number
FOR NO KEY UPDATE;

-- name: LinesToTell :many
-- With what is shown, whether it may be, and what is to be shown: the newest version
-- that the owner has approved.
SELECT l.line_id, l.device_id, l.start_date, l.end_date, l.dayparts, l.slots, l.slot_seconds, l.start_time, l.end_time,
    l.booked, o.state, l.showing_number, l.taken_down_number, l.revision,
    coalesce(shown.creative_id, '')::text AS shown_creative_id, coalesce(shown.version, 0)::integer AS shown_version,
    coalesce(shown.sha256, '')::text AS shown_sha256, coalesce(shown.media_type, '')::text AS shown_media_type,
    coalesce(shown.duration_ms, 0)::integer AS shown_duration_ms, coalesce(shown.allowed, false)::boolean AS shown_allowed,
    coalesce(due.creative_id, '')::text AS due_creative_id, coalesce(due.version, 0)::integer AS due_version,
    coalesce(due.sha256, '')::text AS due_sha256, coalesce(due.media_type, '')::text AS due_media_type,
    coalesce(due.duration_ms, 0)::integer AS due_duration_ms
FROM lines AS l
JOIN orders AS o ON o.order_id = l.order_id
LEFT JOIN LATERAL (
    SELECT v.creative_id, v.version, v.sha256, v.media_type, v.duration_ms,
        c.take_down_time IS NULL AND a.state IS NOT DISTINCT FROM 'APPROVED' AS allowed
    FROM creative_versions AS v
    JOIN creatives AS c ON c.creative_id = v.creative_id
    LEFT JOIN approvals AS a ON a.creative_id = v.creative_id AND a.version = v.version AND a.owner_id = l.owner_id
    WHERE v.creative_id = l.shown_creative_id AND v.version = l.shown_version
) AS shown ON true
LEFT JOIN LATERAL (
    SELECT v.creative_id, v.version, v.sha256, v.media_type, v.duration_ms
    FROM creatives AS c
    JOIN creative_versions AS v ON v.creative_id = c.creative_id
    JOIN approvals AS a ON a.creative_id = v.creative_id AND a.version = v.version AND a.owner_id = l.owner_id AND a.state = 'APPROVED'
    WHERE c.creative_id = l.creative_id AND c.take_down_time IS NULL
    ORDER BY v.version DESC
    LIMIT 1
) AS due ON true
WHERE l.line_id = ANY(@line_ids::text[])
ORDER BY l.order_id, l.line_number;

-- name: SoldLines :many
-- The same of lines that are booked and not over, by devices.
SELECT l.line_id, l.device_id, l.start_date, l.end_date, l.dayparts, l.slots, l.slot_seconds, l.start_time, l.end_time,
    l.booked, o.state, l.showing_number, l.taken_down_number, l.revision,
    coalesce(shown.creative_id, '')::text AS shown_creative_id, coalesce(shown.version, 0)::integer AS shown_version,
    coalesce(shown.sha256, '')::text AS shown_sha256, coalesce(shown.media_type, '')::text AS shown_media_type,
    coalesce(shown.duration_ms, 0)::integer AS shown_duration_ms, coalesce(shown.allowed, false)::boolean AS shown_allowed,
    coalesce(due.creative_id, '')::text AS due_creative_id, coalesce(due.version, 0)::integer AS due_version,
    coalesce(due.sha256, '')::text AS due_sha256, coalesce(due.media_type, '')::text AS due_media_type,
    coalesce(due.duration_ms, 0)::integer AS due_duration_ms
FROM lines AS l
JOIN orders AS o ON o.order_id = l.order_id
LEFT JOIN LATERAL (
    SELECT v.creative_id, v.version, v.sha256, v.media_type, v.duration_ms,
        c.take_down_time IS NULL AND a.state IS NOT DISTINCT FROM 'APPROVED' AS allowed
    FROM creative_versions AS v
    JOIN creatives AS c ON c.creative_id = v.creative_id
    LEFT JOIN approvals AS a ON a.creative_id = v.creative_id AND a.version = v.version AND a.owner_id = l.owner_id
    WHERE v.creative_id = l.shown_creative_id AND v.version = l.shown_version
) AS shown ON true
LEFT JOIN LATERAL (
    SELECT v.creative_id, v.version, v.sha256, v.media_type, v.duration_ms
    FROM creatives AS c
    JOIN creative_versions AS v ON v.creative_id = c.creative_id
    JOIN approvals AS a ON a.creative_id = v.creative_id AND a.version = v.version AND a.owner_id = l.owner_id AND a.state = 'APPROVED'
    WHERE c.creative_id = l.creative_id AND c.take_down_time IS NULL
    ORDER BY v.version DESC
    LIMIT 1
) AS due ON true
WHERE l.booked AND o.state = 'BOOKED' AND l.end_time > @now
    AND (cardinality(@device_ids::text[]) = 0 OR l.device_id = ANY(@device_ids::text[]))
    AND (l.device_id, l.line_id) > (@after_device::text, @after_line::text)
ORDER BY l.device_id, l.line_id
LIMIT @at_most;

-- name: TellLines :exec
UPDATE lines AS l
SET shown_creative_id = nullif(n.shown_creative_id, ''), shown_version = n.shown_version, showing_number = n.showing_number,
    taken_down_number = n.taken_down_number, revision = n.revision
FROM (
    SELECT unnest(@line_ids::text[]) AS line_id, unnest(@shown_creative_ids::text[]) AS shown_creative_id,
        unnest(@shown_versions::integer[]) AS shown_version, unnest(@showing_numbers::integer[]) AS showing_number,
        unnest(@taken_down_numbers::integer[]) AS taken_down_number, unnest(@revisions::bigint[]) AS revision
) AS n
WHERE l.line_id = n.line_id;

-- name: DisplayIDs :many
SELECT device_id
FROM displays
WHERE device_id > @after::text
ORDER BY device_id
LIMIT @at_most;
