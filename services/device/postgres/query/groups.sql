-- name: CountGroups :one
SELECT count(*) FROM device_groups WHERE organisation_id = @organisation_id;

-- name: InsertGroup :exec
INSERT INTO device_groups (group_id, organisation_id, name, create_time, update_time)
VALUES (@group_id, @organisation_id, @name, @create_time, @update_time);

-- name: LockGroup :one
-- Until the transaction ends: nobody else adds devices to it.
SELECT group_id FROM device_groups
WHERE group_id = @group_id AND organisation_id = @organisation_id
FOR UPDATE;

-- name: Group :one
SELECT g.group_id, g.organisation_id, g.name, g.create_time, g.update_time,
    (SELECT count(*) FROM device_group_members AS m WHERE m.group_id = g.group_id) AS devices
FROM device_groups AS g
WHERE g.group_id = @group_id AND g.organisation_id = @organisation_id;

-- name: Groups :many
SELECT g.group_id, g.organisation_id, g.name, g.create_time, g.update_time,
    (SELECT count(*) FROM device_group_members AS m WHERE m.group_id = g.group_id) AS devices
FROM device_groups AS g
WHERE g.organisation_id = @organisation_id AND (@before::text = '' OR g.group_id < @before::text)
ORDER BY g.group_id DESC
LIMIT @at_most;

-- name: RenameGroup :exec
UPDATE device_groups SET name = @name, update_time = @update_time
WHERE group_id = @group_id AND organisation_id = @organisation_id AND name <> @name;

-- name: DeleteGroup :exec
DELETE FROM device_groups WHERE group_id = @group_id AND organisation_id = @organisation_id;

-- name: ShareDevices :many
-- Until the transaction ends nobody deletes them.
SELECT device_id FROM devices
WHERE device_id = ANY(@device_ids::text[]) AND organisation_id = @organisation_id AND delete_time IS NULL
ORDER BY device_id
FOR SHARE;

-- name: AddGroupDevices :exec
INSERT INTO device_group_members (group_id, device_id)
SELECT @group_id, unnest(@device_ids::text[])
ON CONFLICT ON CONSTRAINT device_group_members_pkey DO NOTHING;

-- name: RemoveGroupDevices :exec
DELETE FROM device_group_members
WHERE group_id = @group_id AND device_id = ANY(@device_ids::text[]);

-- name: LeaveGroups :exec
DELETE FROM device_group_members WHERE device_id = @device_id;

-- name: GroupDevices :many
SELECT device_id FROM device_group_members WHERE group_id = @group_id ORDER BY device_id;
