-- name: Member :one
SELECT organisation_id, account_id, role, create_time
FROM members
WHERE organisation_id = @organisation_id AND account_id = @account_id;

-- name: PutMember :exec
INSERT INTO members AS m (organisation_id, account_id, role, create_time)
VALUES (@organisation_id, @account_id, @role, @create_time)
ON CONFLICT ON CONSTRAINT members_pkey DO UPDATE SET role = excluded.role;

-- name: DeleteMember :exec
DELETE FROM members
WHERE organisation_id = @organisation_id AND account_id = @account_id;

-- name: CountOwners :one
SELECT count(*) FROM members
WHERE organisation_id = @organisation_id AND role = 'owner';

-- name: LockAccount :exec
-- Until the transaction ends.
SELECT account_id FROM accounts
WHERE account_id = @account_id
FOR NO KEY UPDATE;

-- name: CountMemberships :one
SELECT count(*) FROM members
WHERE account_id = @account_id;

-- name: RaiseRolesVersion :exec
UPDATE accounts
SET roles_version = roles_version + 1, roles_change_time = sqlc.arg(now)::timestamptz
WHERE account_id = @account_id;

-- name: Granted :many
-- One statement, one snapshot: the version is that of the roles. Without roles
-- there is one row with empty ones.
SELECT a.roles_version, coalesce(m.organisation_id, '')::text AS organisation_id, coalesce(m.role, '')::text AS role
FROM accounts AS a
LEFT JOIN members AS m ON m.account_id = a.account_id
WHERE a.account_id = @account_id;

-- name: Memberships :many
SELECT o.organisation_id, o.name, o.kind, o.create_time, m.role
FROM members AS m
JOIN organisations AS o ON o.organisation_id = m.organisation_id
WHERE m.account_id = @account_id AND (sqlc.arg(before)::text = '' OR m.organisation_id < sqlc.arg(before)::text)
ORDER BY m.organisation_id DESC
LIMIT @most;

-- name: Members :many
SELECT m.organisation_id, m.account_id, a.name, m.role, m.create_time
FROM members AS m
JOIN accounts AS a ON a.account_id = m.account_id
WHERE m.organisation_id = @organisation_id AND (sqlc.arg(before)::text = '' OR m.account_id < sqlc.arg(before)::text)
ORDER BY m.account_id DESC
LIMIT @most;
