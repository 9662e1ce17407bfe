-- name: InsertLines :batchexec
INSERT INTO lines (
    line_id, order_id, line_number, device_id, owner_id, start_date, end_date, dayparts, slots, loop_seconds, slot_seconds,
    time_zone, start_time, end_time, times, plays, price_minor, refunded_minor, earned_minor, booked, creative_id,
    shown_version, showing_number, revision
) VALUES (
    @line_id, @order_id, @line_number, @device_id, @owner_id, @start_date, @end_date, @dayparts, @slots, @loop_seconds, @slot_seconds,
    @time_zone, @start_time, @end_time, @times, @plays, @price_minor, 0, 0, false, nullif(@creative_id::text, ''), 0, 0, 0
);

-- name: LinesOf :many
SELECT sqlc.embed(l) FROM lines AS l
WHERE l.order_id = @order_id
ORDER BY l.line_number;

-- name: LockLinesOf :exec
-- Until the transaction ends; in the order in which everybody locks lines.
SELECT FROM lines
WHERE order_id = @order_id
ORDER BY line_number
FOR NO KEY UPDATE;

-- name: BookLines :exec
UPDATE lines SET booked = true
WHERE order_id = @order_id;

-- name: CutLines :batchexec
-- Of a line of which nothing is past, when it would have been on stays known.
UPDATE lines SET times = @times, plays = @plays, end_time = coalesce(upper(@times::tstzmultirange), end_time)
WHERE line_id = @line_id;
