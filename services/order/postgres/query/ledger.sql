-- name: AddAccounts :exec
-- Those that there are stay as they are: by either constraint, as another transaction
-- adds the same at this moment. In one order, so that no two wait for each other.
INSERT INTO ledger_accounts (account_id, kind, organisation_id, currency, balance_minor)
SELECT n.account_id, n.kind, n.organisation_id, n.currency, CASE WHEN n.kind IN ('WALLET', 'ORDER') THEN 0 END
FROM (
    SELECT unnest(@account_ids::text[]) AS account_id, unnest(@kinds::text[]) AS kind,
        unnest(@organisation_ids::text[]) AS organisation_id, unnest(@currencies::text[]) AS currency
) AS n
ORDER BY n.account_id
ON CONFLICT DO NOTHING;

-- name: LockAccounts :many
-- Until the transaction ends, in one order. Those without a balance are nobody's to
-- wait for.
SELECT account_id, balance_minor::bigint AS balance_minor FROM ledger_accounts
WHERE account_id = ANY(@account_ids::text[]) AND balance_minor IS NOT NULL
ORDER BY account_id
FOR NO KEY UPDATE;

-- name: ChangeBalances :exec
UPDATE ledger_accounts AS a SET balance_minor = a.balance_minor + c.change_minor
FROM (SELECT unnest(@account_ids::text[]) AS account_id, unnest(@changes_minor::bigint[]) AS change_minor) AS c
WHERE a.account_id = c.account_id;

-- name: InsertEntries :exec
INSERT INTO ledger_entries (entry_id, from_account, to_account, currency, amount_minor, kind, order_id, line_id, reference, create_time)
SELECT n.entry_id, n.from_account, n.to_account, n.currency, n.amount_minor, n.kind, n.order_id, n.line_id, n.reference, @create_time
FROM (
    SELECT unnest(@entry_ids::text[]) AS entry_id, unnest(@from_accounts::text[]) AS from_account, unnest(@to_accounts::text[]) AS to_account,
        unnest(@currencies::text[]) AS currency, unnest(@amounts_minor::bigint[]) AS amount_minor, unnest(@kinds::text[]) AS kind,
        unnest(@order_ids::text[]) AS order_id, unnest(@line_ids::text[]) AS line_id, unnest(@entry_references::text[]) AS reference
) AS n;

-- name: TopUpStored :one
SELECT EXISTS (SELECT FROM ledger_entries WHERE reference = @reference AND kind = 'TOP_UP');

-- name: Balances :many
SELECT currency, balance_minor::bigint AS balance_minor FROM ledger_accounts
WHERE organisation_id = @organisation_id AND organisation_id <> '' AND kind = 'WALLET'
ORDER BY currency;

-- name: WalletEntries :many
-- Each account gives its own newest, so that not all of them are read and sorted.
SELECT e.entry_id, e.from_account, e.to_account, e.currency, e.amount_minor, e.kind, e.order_id, e.line_id, e.reference, e.create_time
FROM ledger_accounts AS a
CROSS JOIN LATERAL (
    (SELECT * FROM ledger_entries AS o
    WHERE o.from_account = a.account_id AND (@before::text = '' OR o.entry_id < @before::text)
    ORDER BY o.entry_id DESC LIMIT @at_most)
    UNION ALL
    (SELECT * FROM ledger_entries AS i
    WHERE i.to_account = a.account_id AND (@before::text = '' OR i.entry_id < @before::text)
    ORDER BY i.entry_id DESC LIMIT @at_most)
) AS e
WHERE a.organisation_id = @organisation_id AND a.organisation_id <> '' AND a.kind = 'WALLET'
ORDER BY e.entry_id DESC
LIMIT @at_most;

-- name: TakeTestCharge :one
-- No row when there is a charge with this key.
INSERT INTO test_charges (charge_key, organisation_id, amount_minor, currency, payment_method)
VALUES (@charge_key, @organisation_id, @amount_minor, @currency, @payment_method)
ON CONFLICT ON CONSTRAINT test_charges_pkey DO NOTHING
RETURNING charge_number;

-- name: TestCharge :one
SELECT charge_number, organisation_id, amount_minor, currency, payment_method FROM test_charges
WHERE charge_key = @charge_key;

-- name: CheckSums :many
-- What all accounts of a currency have together, if that is not nothing. Those without
-- a balance have what their entries say.
SELECT a.currency, sum(coalesce(a.balance_minor, m.moved_minor, 0))::text AS sum_minor
FROM ledger_accounts AS a
LEFT JOIN (
    SELECT b.account_id, sum(b.amount_minor) AS moved_minor
    FROM (
        SELECT to_account AS account_id, amount_minor FROM ledger_entries
        UNION ALL
        SELECT from_account, -amount_minor FROM ledger_entries
    ) AS b
    GROUP BY b.account_id
) AS m ON m.account_id = a.account_id
GROUP BY a.currency
HAVING sum(coalesce(a.balance_minor, m.moved_minor, 0)) <> 0
ORDER BY a.currency
LIMIT @at_most;

-- name: CheckBalances :many
-- Accounts whose balance is not the sum of their entries, or less than nothing, and
-- entries of accounts that there are not.
SELECT coalesce(a.account_id, m.account_id)::text AS account_id, (a.account_id IS NOT NULL)::boolean AS there,
    coalesce(a.balance_minor, 0)::bigint AS balance_minor, coalesce(m.moved_minor, 0)::text AS moved_minor
FROM ledger_accounts AS a
FULL JOIN (
    SELECT b.account_id, b.currency, sum(b.amount_minor) AS moved_minor
    FROM (
        SELECT to_account AS account_id, currency, amount_minor FROM ledger_entries
        UNION ALL
        SELECT from_account, currency, -amount_minor FROM ledger_entries
    ) AS b
    GROUP BY b.account_id, b.currency
) AS m ON m.account_id = a.account_id AND m.currency = a.currency
WHERE a.account_id IS NULL
    OR a.kind IN ('WALLET', 'ORDER') AND (a.balance_minor IS DISTINCT FROM coalesce(m.moved_minor, 0) OR a.balance_minor < 0)
ORDER BY 1
LIMIT @at_most;

-- name: CheckPayments :many
-- Orders that were booked and are not paid once with their price, from the wallet of
-- who ordered, and those that were not booked and are paid.
SELECT o.order_id, o.price_minor, o.currency, (o.book_time IS NOT NULL)::boolean AS booked,
    coalesce(p.payments, 0)::bigint AS payments, coalesce(p.paid_minor, 0)::text AS paid_minor
FROM orders AS o
LEFT JOIN (
    SELECT e.order_id, count(*) AS payments, sum(e.amount_minor) AS paid_minor,
        min(e.from_account) AS first_from, max(e.from_account) AS last_from, min(e.to_account) AS first_to, max(e.to_account) AS last_to
    FROM ledger_entries AS e
    WHERE e.kind = 'BOOKING'
    GROUP BY e.order_id
) AS p ON p.order_id = o.order_id
WHERE CASE WHEN o.book_time IS NULL OR o.price_minor = 0 THEN p.payments > 0
    ELSE p.payments IS DISTINCT FROM 1 OR p.paid_minor <> o.price_minor
        OR (p.first_from, p.last_from) <> ('wallet:' || o.organisation_id || ':' || o.currency, 'wallet:' || o.organisation_id || ':' || o.currency)
        OR (p.first_to, p.last_to) <> ('order:' || o.order_id, 'order:' || o.order_id)
    END
ORDER BY o.order_id
LIMIT @at_most;

-- name: CheckKept :many
-- Accounts of orders that have something although nothing is kept for the order any
-- more, or other than its price while it is booked, and those of no order.
SELECT a.account_id, coalesce(a.balance_minor, 0)::bigint AS balance_minor, a.currency,
    coalesce(o.state, '')::text AS state, coalesce(o.price_minor, 0)::bigint AS price_minor
FROM ledger_accounts AS a
LEFT JOIN orders AS o ON o.order_id = substr(a.account_id, 7)
WHERE a.kind = 'ORDER'
    AND (o.order_id IS NULL OR a.currency <> o.currency
        OR a.balance_minor IS DISTINCT FROM CASE WHEN o.state = 'BOOKED' THEN o.price_minor ELSE 0 END)
ORDER BY a.account_id
LIMIT @at_most;

-- name: CheckRefunds :many
-- Orders that say that other came back than did.
SELECT o.order_id, o.refunded_minor, coalesce(r.refunded_minor, 0)::text AS entries_minor,
    l.refunded_minor::text AS lines_minor
FROM orders AS o
JOIN (
    SELECT order_id, sum(lines.refunded_minor) AS refunded_minor FROM lines GROUP BY order_id
) AS l ON l.order_id = o.order_id
LEFT JOIN (
    SELECT order_id, sum(amount_minor) AS refunded_minor FROM ledger_entries WHERE kind = 'REFUND' GROUP BY order_id
) AS r ON r.order_id = o.order_id
WHERE o.refunded_minor <> coalesce(r.refunded_minor, 0) OR o.refunded_minor <> l.refunded_minor
ORDER BY o.order_id
LIMIT @at_most;

-- name: CheckEarnings :many
-- Lines that say that other was earned than was.
SELECT l.line_id, l.earned_minor, coalesce(e.earned_minor, 0)::text AS entries_minor
FROM lines AS l
LEFT JOIN (
    SELECT line_id, sum(amount_minor) AS earned_minor FROM ledger_entries WHERE kind = 'EARNING' GROUP BY line_id
) AS e ON e.line_id = l.line_id
WHERE l.earned_minor <> coalesce(e.earned_minor, 0)
ORDER BY l.line_id
LIMIT @at_most;

-- name: CheckBookings :many
-- Slots of lines of booked orders that are not reserved for good, at all times of the
-- line.
SELECT w.line_id, w.slot::integer AS slot, (r.line_id IS NOT NULL)::boolean AS reserved,
    (r.hold_expire_time IS NOT NULL)::boolean AS expires
FROM (
    SELECT l.line_id, l.device_id, l.times, unnest(l.slots) AS slot
    FROM lines AS l
    JOIN orders AS o ON o.order_id = l.order_id
    WHERE o.state = 'BOOKED'
) AS w
JOIN displays AS d ON d.device_id = w.device_id
LEFT JOIN reservations AS r
    ON r.line_id = w.line_id AND r.place = int8range(d.display_number * 4096 + w.slot, d.display_number * 4096 + w.slot + 1)
WHERE r.line_id IS NULL OR r.hold_expire_time IS NOT NULL OR NOT r.times @> w.times
ORDER BY w.line_id, w.slot
LIMIT @at_most;

-- name: CheckReservations :many
-- Reservations that belong to nothing: of no line, of a slot or a time that the line
-- does not have, or of an order that has nothing any more. A hold that is over is in
-- nobody's way. The clock is the one that goes on, so that what is swept meanwhile is
-- over.
SELECT r.line_id, r.place::text AS place, coalesce(o.order_id, '')::text AS order_id, coalesce(o.state, '')::text AS state
FROM reservations AS r
LEFT JOIN lines AS l ON l.line_id = r.line_id
LEFT JOIN orders AS o ON o.order_id = l.order_id
LEFT JOIN displays AS d ON d.device_id = l.device_id
WHERE (r.hold_expire_time IS NULL OR r.hold_expire_time > clock_timestamp())
    AND (o.order_id IS NULL OR d.device_id IS NULL
        OR upper(r.place) - lower(r.place) <> 1
        OR NOT (lower(r.place) - d.display_number * 4096 = ANY(l.slots))
        OR NOT r.times <@ l.times
        OR CASE WHEN r.hold_expire_time IS NULL THEN o.book_time IS NULL ELSE o.state <> 'HELD' END)
ORDER BY r.line_id, r.place
LIMIT @at_most;
