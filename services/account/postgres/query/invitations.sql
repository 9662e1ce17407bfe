-- name: Invitation :one
SELECT invitation_id, organisation_id, role, inviter_id, create_time, expire_time, accept_time, accepter_id, revoke_time
FROM invitations
WHERE invitation_id = @invitation_id;

-- name: CountInvitations :one
-- Of those that can be accepted.
SELECT count(*) FROM invitations
WHERE organisation_id = @organisation_id AND accept_time IS NULL AND revoke_time IS NULL AND expire_time > sqlc.arg(now)::timestamptz;

-- name: PutInvitation :exec
INSERT INTO invitations AS i (invitation_id, organisation_id, role, inviter_id, create_time, expire_time, accept_time, accepter_id, revoke_time)
VALUES (@invitation_id, @organisation_id, @role, @inviter_id, @create_time, @expire_time, @accept_time, @accepter_id, @revoke_time)
ON CONFLICT ON CONSTRAINT invitations_pkey DO UPDATE
SET accept_time = excluded.accept_time, accepter_id = excluded.accepter_id, revoke_time = excluded.revoke_time;

-- name: Invitations :many
SELECT invitation_id, organisation_id, role, inviter_id, create_time, expire_time, accept_time, accepter_id, revoke_time
FROM invitations
WHERE organisation_id = @organisation_id AND (sqlc.arg(before)::text = '' OR invitation_id < sqlc.arg(before)::text)
ORDER BY invitation_id DESC
LIMIT @most;

-- name: SweepInvitations :execrows
DELETE FROM invitations
WHERE invitation_id IN (
    SELECT old.invitation_id FROM invitations AS old
    WHERE coalesce(old.accept_time, old.revoke_time, old.expire_time) <= @over_before
    LIMIT @batch
    FOR UPDATE SKIP LOCKED
);
