-- name: InsertAccount :exec
INSERT INTO accounts (account_id, name, name_key, password_hash, create_time)
VALUES (@account_id, @name, @name_key, @password_hash, @create_time);

-- name: Account :one
SELECT account_id, name, create_time
FROM accounts
WHERE account_id = @account_id;

-- name: Password :one
SELECT account_id, name, create_time, password_hash
FROM accounts
WHERE name_key = @name_key;

-- name: ReplacePasswordHash :exec
UPDATE accounts
SET password_hash = @new_hash
WHERE account_id = @account_id AND password_hash = @old_hash;
