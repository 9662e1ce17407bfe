-- name: AskApprovals :exec
-- For the newest version, of each owner of booked displays who was not asked. An
-- organisation's own displays need no asking. In the order in which everybody asks:
-- who asks the same waits.
INSERT INTO approvals (creative_id, version, owner_id, state, reason, create_time, decide_time)
SELECT DISTINCT c.creative_id, c.version, l.owner_id,
    CASE WHEN l.owner_id = c.organisation_id THEN 'APPROVED' ELSE 'PENDING' END,
    '', @now::timestamptz,
    CASE WHEN l.owner_id = c.organisation_id THEN @now::timestamptz END
FROM creatives AS c
JOIN lines AS l ON l.creative_id = c.creative_id
JOIN orders AS o ON o.order_id = l.order_id
WHERE c.creative_id = @creative_id AND c.take_down_time IS NULL
    AND l.booked AND o.state = 'BOOKED' AND l.end_time > @now::timestamptz
ORDER BY l.owner_id
ON CONFLICT ON CONSTRAINT approvals_pkey DO NOTHING;

-- name: Approval :one
SELECT sqlc.embed(a), sqlc.embed(c), sqlc.embed(v)
FROM approvals AS a
JOIN creatives AS c ON c.creative_id = a.creative_id
JOIN creative_versions AS v ON v.creative_id = a.creative_id AND v.version = a.version
WHERE a.creative_id = @creative_id AND a.version = @version AND a.owner_id = @owner_id;

-- name: Approvals :many
SELECT sqlc.embed(a), sqlc.embed(c), sqlc.embed(v)
FROM approvals AS a
JOIN creatives AS c ON c.creative_id = a.creative_id
JOIN creative_versions AS v ON v.creative_id = a.creative_id AND v.version = a.version
WHERE a.owner_id = @owner_id
    AND (@state::text = '' OR a.state = @state::text)
    AND (a.state <> 'PENDING' OR c.take_down_time IS NULL)
    AND (a.create_time, a.creative_id, a.version) > (@after_time::timestamptz, @after_creative_id::text, @after_version::integer)
ORDER BY a.create_time, a.creative_id, a.version
LIMIT @at_most;

-- name: PendingApprovals :many
-- Approvals for what is not decided, by an index that has nothing else.
SELECT sqlc.embed(a), sqlc.embed(c), sqlc.embed(v)
FROM approvals AS a
JOIN creatives AS c ON c.creative_id = a.creative_id
JOIN creative_versions AS v ON v.creative_id = a.creative_id AND v.version = a.version
WHERE a.owner_id = @owner_id AND a.state = 'PENDING' AND c.take_down_time IS NULL
    AND (a.create_time, a.creative_id, a.version) > (@after_time::timestamptz, @after_creative_id::text, @after_version::integer)
ORDER BY a.create_time, a.creative_id, a.version
LIMIT @at_most;

-- name: ApprovalsOfCreative :many
-- The newest versions' first.
SELECT sqlc.embed(a) FROM approvals AS a
WHERE a.creative_id = @creative_id
ORDER BY a.version DESC, a.owner_id
LIMIT @at_most;

-- name: DecideApproval :exec
UPDATE approvals SET state = @state, reason = @reason, decide_time = @decide_time::timestamptz
WHERE creative_id = @creative_id AND version = @version AND owner_id = @owner_id;
