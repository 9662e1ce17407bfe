-- name: SeeInstance :exec
INSERT INTO instances (instance_id, seen_time)
VALUES (@instance_id, now())
ON CONFLICT ON CONSTRAINT instances_pkey DO UPDATE SET seen_time = excluded.seen_time;

-- name: ForgetInstance :exec
DELETE FROM instances WHERE instance_id = @instance_id;

-- name: Connect :exec
-- The last one that is written here is the one that stays: whoever holds another
-- connection of the device is told.
WITH put AS (
    INSERT INTO presence AS p (device_id, instance_id, connection_id, connect_time)
    SELECT c.device_id, @instance_id, c.connection_id, c.connect_time
    FROM (
        SELECT unnest(@device_ids::text[]) AS device_id, unnest(@connection_ids::text[]) AS connection_id,
            unnest(@connect_times::timestamptz[]) AS connect_time
    ) AS c
    ORDER BY c.device_id
    ON CONFLICT ON CONSTRAINT presence_pkey DO UPDATE
    SET instance_id = excluded.instance_id, connection_id = excluded.connection_id,
        connect_time = excluded.connect_time, disconnect_time = NULL
    RETURNING device_id, connection_id
)
SELECT pg_notify('device', 'connected ' || put.device_id || ' ' || put.connection_id) FROM put;

-- name: ConnectionsOf :many
SELECT device_id, connection_id FROM presence
WHERE device_id = ANY(@device_ids::text[]);

-- name: Disconnect :exec
UPDATE presence SET disconnect_time = @disconnect_time
WHERE device_id = @device_id AND connection_id = @connection_id AND disconnect_time IS NULL;

-- name: DisconnectOthers :exec
-- What the instance believed connected and is not.
WITH gone AS (
    UPDATE presence SET disconnect_time = @disconnect_time
    WHERE instance_id = @instance_id AND disconnect_time IS NULL AND connect_time < @before
        AND NOT (connection_id = ANY(@connection_ids::text[]))
    RETURNING device_id
)
SELECT pg_notify('device', 'disconnected ' || gone.device_id) FROM gone;

-- name: SweepInstances :execrows
DELETE FROM instances AS i
WHERE i.seen_time < now() - interval '1 hour'
    AND NOT EXISTS (SELECT FROM presence AS p WHERE p.instance_id = i.instance_id AND p.disconnect_time IS NULL);
