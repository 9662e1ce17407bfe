-- name: InsertOrganisation :exec
INSERT INTO organisations (organisation_id, name, kind, create_time)
VALUES (@organisation_id, @name, @kind, @create_time);

-- name: LockOrganisation :one
-- Until the transaction ends.
SELECT organisation_id, name, kind, create_time
FROM organisations
WHERE organisation_id = @organisation_id
FOR UPDATE;

-- name: Organisation :one
SELECT organisation_id, name, kind, create_time
FROM organisations
WHERE organisation_id = @organisation_id;
