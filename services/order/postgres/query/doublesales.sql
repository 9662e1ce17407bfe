-- name: CheckDoubleSales :many
-- Places that two lines have at one time, as the constraint does not let it be. Holds
-- that are over are in nobody's way.
SELECT a.place::text AS place, a.line_id, b.line_id AS other_line_id
FROM reservations AS a
JOIN reservations AS b ON b.place = a.place AND b.line_id > a.line_id AND b.times && a.times
WHERE (a.hold_expire_time IS NULL OR a.hold_expire_time > clock_timestamp())
    AND (b.hold_expire_time IS NULL OR b.hold_expire_time > clock_timestamp())
ORDER BY a.line_id, b.line_id, a.place
LIMIT @at_most;
