-- name: LockOrder :one
-- Until the transaction ends.
SELECT sqlc.embed(o), (o.hold_expire_time <= now())::boolean AS hold_over FROM orders AS o
WHERE o.order_id = @order_id AND o.organisation_id = @organisation_id
FOR UPDATE;

-- name: Order :one
SELECT sqlc.embed(o), (o.hold_expire_time <= now())::boolean AS hold_over FROM orders AS o
WHERE o.order_id = @order_id AND o.organisation_id = @organisation_id;

-- name: Orders :many
-- A held order whose hold is over is in the state expired.
SELECT sqlc.embed(o), (o.hold_expire_time <= now())::boolean AS hold_over FROM orders AS o
WHERE o.organisation_id = @organisation_id
    AND (@before::text = '' OR o.order_id < @before::text)
    AND (@state::text = ''
        OR @state::text = CASE WHEN o.state = @held::text AND o.hold_expire_time <= now() THEN @expired::text ELSE o.state END)
ORDER BY o.order_id DESC
LIMIT @at_most;

-- name: LockHoldsOf :exec
-- Until the transaction ends: nobody else holds an order for the organisation.
-- Displays are locked by one number, so that the two never mean the same.
SELECT pg_advisory_xact_lock(1, hashtext(@organisation_id::text));

-- name: CountHolds :one
SELECT count(*) AS count, now()::timestamptz AS clock FROM orders
WHERE organisation_id = @organisation_id AND state = 'HELD' AND hold_expire_time > now();

-- name: InsertOrder :exec
INSERT INTO orders (
    order_id, organisation_id, title, state, price_minor, refunded_minor, currency, line_count, create_time, hold_expire_time, end_time
) VALUES (
    @order_id, @organisation_id, @title, @state, @price_minor, 0, @currency, @line_count, @create_time,
    @hold_expire_time, @end_time
);

-- name: UpdateOrder :exec
UPDATE orders SET state = @state, book_time = @book_time, cancel_time = @cancel_time, refunded_minor = @refunded_minor
WHERE order_id = @order_id;

-- name: ExpireOrders :execrows
UPDATE orders SET state = @expired
WHERE order_id IN (
    SELECT o.order_id FROM orders AS o
    WHERE o.state = 'HELD' AND o.hold_expire_time <= now()
    ORDER BY o.hold_expire_time
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
