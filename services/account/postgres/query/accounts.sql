-- name: InsertAccount :exec
INSERT INTO accounts (account_id, name, name_key, password_hash, create_time)
VALUES (@account_id, @name, @name_key, @password_hash, @create_time);

-- name: Account :one
SELECT account_id, name, create_time
FROM accounts
WHERE account_id = @account_id;

-- name: PasswordByName :one
SELECT a.account_id, a.name, a.create_time, a.password_hash, a.password_generation,
    (sqlc.arg(address)::text <> '' AND EXISTS (
        SELECT 1 FROM sessions AS s WHERE s.account_id = a.account_id AND s.address = sqlc.arg(address)::text
    ))::boolean AS known
FROM accounts AS a
WHERE a.name_key = @name_key;

-- name: PasswordByAccount :one
SELECT account_id, name, create_time, password_hash, password_generation
FROM accounts
WHERE account_id = @account_id;

-- name: ReplacePasswordHash :exec
UPDATE accounts
SET password_hash = @new_hash
WHERE account_id = @account_id AND password_hash = @old_hash;

-- name: ChangePassword :execrows
UPDATE accounts
SET password_hash = @new_hash, password_generation = password_generation + 1
WHERE account_id = @account_id AND password_generation = @password_generation;
