-- name: Bookings :many
SELECT sqlc.embed(l), o.state, o.organisation_id, o.currency
FROM lines AS l
JOIN orders AS o ON o.order_id = l.order_id
WHERE l.owner_id = @owner_id AND l.booked
    AND (@before::text = '' OR l.line_id < @before::text)
    AND (@device_id::text = '' OR l.device_id = @device_id::text)
    AND (sqlc.narg(from_time)::timestamptz IS NULL OR l.end_time > sqlc.narg(from_time)::timestamptz)
    AND (sqlc.narg(to_time)::timestamptz IS NULL OR l.start_time < sqlc.narg(to_time)::timestamptz)
ORDER BY l.line_id DESC
LIMIT @at_most;

-- name: DueOrders :many
SELECT order_id, organisation_id, end_time
FROM orders
WHERE state = 'BOOKED' AND end_time < @ended_before
    AND (end_time, order_id) > (@after_time::timestamptz, @after_order::text)
ORDER BY end_time, order_id
LIMIT @at_most;

-- name: LockOrderToSettle :one
-- No row while somebody else is at it.
SELECT order_id, state FROM orders
WHERE order_id = @order_id
FOR UPDATE SKIP LOCKED;

-- name: SettleLines :exec
UPDATE lines AS l
SET earned_minor = n.earned_minor, refunded_minor = n.refunded_minor
FROM (
    SELECT unnest(@line_ids::text[]) AS line_id, unnest(@earned_minor::bigint[]) AS earned_minor, unnest(@refunded_minor::bigint[]) AS refunded_minor
) AS n
WHERE l.line_id = n.line_id;

-- name: LedgerSize :one
SELECT (SELECT count(*) FROM ledger_entries)::bigint AS entries, (SELECT count(*) FROM orders WHERE book_time IS NOT NULL)::bigint AS orders;
