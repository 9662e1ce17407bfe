package main

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/throttle"
	"github.com/marquee-ads/marquee/services/account"
)

// audience is whom the access tokens are for: this program alone.
const audience = "monolith"

// signingKey signs the access tokens and, as auth.Keys, verifies them.
type signingKey struct {
	id      string
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

func (k signingKey) PublicKey(id string) (ed25519.PublicKey, bool) { return k.public, id == k.id }
func (signingKey) SessionEnded(string) bool                        { return false } // there is no log-out
func (signingKey) RolesVersion(string) int64                       { return 0 }     // nor a change of roles

// accounts is what the program does, apart from how it is called.
type accounts struct {
	db       *pgxpool.Pool
	hasher   *account.Hasher
	throttle account.Throttle
	key      signingKey
	secret   []byte // of the MACs that are stored
}

func newAccounts(db *pgxpool.Pool, hasher *account.Hasher) (*accounts, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the signing key: %w", err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("make the secret: %w", err)
	}
	id, err := newID("key", time.Now())
	if err != nil {
		return nil, err
	}
	return &accounts{
		db: db, hasher: hasher, throttle: account.DefaultThrottle(),
		key: signingKey{id: id, private: private, public: public}, secret: secret,
	}, nil
}

func newID(prefix string, now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make an id: %w", err)
	}
	return prefix + "_" + id.String(), nil
}

// mac is 32 bytes that only this process can make of these fields.
func (a *accounts) mac(fields ...string) []byte {
	mac := hmac.New(sha256.New, a.secret)
	for _, f := range fields {
		fmt.Fprintf(mac, "%d:%s", len(f), f)
	}
	return mac.Sum(nil)
}

const (
	selectSignUp = `
SELECT EXISTS (SELECT 1 FROM accounts WHERE name_key = $2), s.fingerprint, a.account_id, a.name, a.create_time
FROM (SELECT 1) AS one
LEFT JOIN sign_ups AS s ON s.request_id = $1 AND s.expire_time > $3
LEFT JOIN accounts AS a ON a.account_id = s.account_id`

	claimRequestID = `
INSERT INTO sign_ups AS s (request_id, fingerprint, account_id, expire_time)
VALUES ($1, $2, $3, $4)
ON CONFLICT (request_id) DO UPDATE
SET fingerprint = excluded.fingerprint, account_id = excluded.account_id, expire_time = excluded.expire_time
WHERE s.expire_time <= $5`

	insertAccount = `
INSERT INTO accounts (account_id, name, name_key, password_hash, create_time)
VALUES ($1, $2, $3, $4, $5)`

	insertEvent = `
INSERT INTO audit_events (event_id, event_time, kind, account_id, actor_id, session_id, address)
VALUES ($1, $2, $3, $4, $5, '', $6)`
)

// errClaimed says that the request id belongs to another sign-up.
var errClaimed = errors.New("the request id is another sign-up's")

// signUp creates an account; a repeat with the same request id gets the first
// answer.
func (a *accounts) signUp(ctx context.Context, r signUpRequest, address string) (accountMessage, error) {
	if err := r.validate(); err != nil {
		return accountMessage{}, err
	}
	fingerprint := a.mac("sign-up", r.Name, r.Password)
	if first, found, err := a.earlier(ctx, r, fingerprint); err != nil || found {
		return first, err
	}
	prepared, err := preparePassword(r.Password)
	if err != nil {
		return accountMessage{}, err
	}
	if err := checkPassword(prepared, r.Name); err != nil {
		return accountMessage{}, err
	}
	hash, err := a.hash(ctx, prepared)
	if err != nil {
		return accountMessage{}, err
	}

	now := time.Now().UTC().Truncate(time.Microsecond)
	id, err := newID("acc", now)
	if err != nil {
		return accountMessage{}, err
	}
	event, err := newID("evt", now)
	if err != nil {
		return accountMessage{}, err
	}
	err = pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		claimed, err := tx.Exec(ctx, claimRequestID, r.RequestID, fingerprint, id, now.Add(account.RequestLifetime), now)
		if err != nil {
			return err
		}
		if claimed.RowsAffected() == 0 {
			return errClaimed
		}
		if _, err := tx.Exec(ctx, insertAccount, id, r.Name, account.NameKey(r.Name), hash, now); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, insertEvent, event, now, string(account.SignedUp), id, id, address)
		return err
	})
	var taken *pgconn.PgError
	switch {
	case errors.Is(err, errClaimed): // by a repeat that was as early
		first, _, err := a.earlier(ctx, r, fingerprint)
		return first, err
	case errors.As(err, &taken) && taken.ConstraintName == "accounts_name_key_unique":
		return accountMessage{}, account.ErrNameTaken.Because(err)
	case err != nil:
		return accountMessage{}, fmt.Errorf("store the account: %w", err)
	}
	return accountMessage{AccountID: id, Name: r.Name, CreateTime: now}, nil
}

// earlier is the answer to the first sign-up with this request id, if there was
// one. It fails when that had another body, and when there is none and the name
// is taken.
func (a *accounts) earlier(ctx context.Context, r signUpRequest, fingerprint []byte) (first accountMessage, found bool, err error) {
	var (
		taken      bool
		before     []byte
		id, name   *string
		createTime *time.Time
	)
	err = a.db.QueryRow(ctx, selectSignUp, r.RequestID, account.NameKey(r.Name), time.Now()).Scan(&taken, &before, &id, &name, &createTime)
	switch {
	case err != nil:
		return accountMessage{}, false, fmt.Errorf("look for an earlier sign-up: %w", err)
	case id != nil && !hmac.Equal(before, fingerprint):
		return accountMessage{}, false, account.ErrRequestIDReused
	case id != nil:
		return accountMessage{AccountID: *id, Name: *name, CreateTime: createTime.UTC()}, true, nil
	case taken:
		return accountMessage{}, false, account.ErrNameTaken
	}
	return accountMessage{}, false, nil
}

func (a *accounts) hash(ctx context.Context, prepared string) (string, error) {
	done, err := a.hasher.Turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	return a.hasher.Hash(prepared)
}

const (
	selectPassword = `
SELECT account_id, name, create_time, password_hash, password_generation,
    EXISTS (SELECT 1 FROM sessions AS s WHERE s.account_id = a.account_id AND s.address = $2)
FROM accounts AS a
WHERE name_key = $1`

	selectRoles = `
SELECT a.roles_version, coalesce(m.organisation_id, ''), coalesce(m.role, '')
FROM accounts AS a
LEFT JOIN members AS m ON m.account_id = a.account_id
WHERE a.account_id = $1`

	insertSession = `
WITH opened AS (
    INSERT INTO sessions (session_id, account_id, create_time, refresh_time, token_expire_time, refresh_hash, expire_time, address)
    SELECT $1, a.account_id, $4, $4, $5, $6, $7, $8
    FROM accounts AS a
    WHERE a.account_id = $2 AND a.password_generation = $3
    FOR SHARE
    RETURNING session_id, account_id, address
)
INSERT INTO audit_events (event_id, event_time, kind, account_id, actor_id, session_id, address)
SELECT $9, $10, $11, account_id, account_id, session_id, address
FROM opened`
)

// password is an account as it is found at log-in.
type password struct {
	account    accountMessage
	hash       string
	generation int32
	known      bool // it was logged in to from this address before
}

// logIn opens a session.
func (a *accounts) logIn(ctx context.Context, r logInRequest, address string) (logInAnswer, error) {
	if err := r.validate(); err != nil {
		return logInAnswer{}, err
	}
	found, err := a.authenticate(ctx, r, address)
	if err != nil {
		return logInAnswer{}, err
	}
	roles, version, err := a.roles(ctx, found.account.AccountID)
	if err != nil {
		return logInAnswer{}, err
	}

	now := time.Now().UTC()
	opened := now.Truncate(time.Second) // the precision of a token's times
	session, err := newID("ses", now)
	if err != nil {
		return logInAnswer{}, err
	}
	event, err := newID("evt", now)
	if err != nil {
		return logInAnswer{}, err
	}
	answer := logInAnswer{
		Account:      found.account,
		ExpireTime:   opened.Add(account.TokenLifetime),
		RefreshToken: "rft_" + rand.Text(), RefreshExpireTime: opened.Add(account.SessionIdle),
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, auth.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: auth.Issuer, Audience: jwt.ClaimStrings{audience}, Subject: found.account.AccountID,
			IssuedAt: jwt.NewNumericDate(opened), NotBefore: jwt.NewNumericDate(opened), ExpiresAt: jwt.NewNumericDate(answer.ExpireTime),
		},
		SessionID: session, Roles: roles, RolesVersion: version,
	})
	token.Header["kid"] = a.key.id
	if answer.AccessToken, err = token.SignedString(a.key.private); err != nil {
		return logInAnswer{}, fmt.Errorf("sign an access token: %w", err)
	}
	refreshHash := sha256.Sum256([]byte(answer.RefreshToken))
	stored, err := a.db.Exec(ctx, insertSession, session, found.account.AccountID, found.generation, opened, answer.ExpireTime,
		refreshHash[:], answer.RefreshExpireTime, address, event, now.Truncate(time.Microsecond), string(account.LoggedIn))
	switch {
	case err != nil:
		return logInAnswer{}, fmt.Errorf("store the session: %w", err)
	case stored.RowsAffected() == 0: // the password was changed meanwhile
		return logInAnswer{}, account.ErrWrongCredentials
	}
	return answer, nil
}

// authenticate takes the turn to hash first, so that a flood of log-ins is
// turned away before it costs the database anything.
func (a *accounts) authenticate(ctx context.Context, r logInRequest, address string) (password, error) {
	done, err := a.hasher.Turn(ctx)
	if err != nil {
		return password{}, err
	}
	defer done()

	prepared, invalid := preparePassword(r.Password)
	nameKey := account.NameKey(r.Name)
	found, err := a.find(ctx, nameKey, address)
	nobody := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !nobody {
		return password{}, fmt.Errorf("look for the account: %w", err)
	}
	debits := a.debits(found, nameKey, address)
	if err := a.admit(ctx, debits); err != nil {
		return password{}, err
	}
	match := false
	if nobody || invalid != nil {
		err = a.hasher.VerifyNobody(r.Password)
	} else {
		match, _, err = a.hasher.Verify(prepared, found.hash)
	}
	if err != nil {
		return password{}, fmt.Errorf("verify the password: %w", err)
	}
	if !match {
		if err := a.failed(ctx, debits, found.account.AccountID, address); err != nil {
			return password{}, err
		}
		return password{}, account.ErrWrongCredentials
	}
	return found, nil
}

func (a *accounts) find(ctx context.Context, nameKey, address string) (password, error) {
	if strings.ContainsRune(nameKey, 0) { // which Postgres does not take
		return password{}, pgx.ErrNoRows
	}
	var p password
	err := a.db.QueryRow(ctx, selectPassword, nameKey, address).
		Scan(&p.account.AccountID, &p.account.Name, &p.account.CreateTime, &p.hash, &p.generation, &p.known)
	p.account.CreateTime = p.account.CreateTime.UTC()
	return p, err
}

func (a *accounts) roles(ctx context.Context, accountID string) (auth.Roles, int64, error) {
	var (
		granted            auth.Roles
		version            int64
		organisation, role string
	)
	rows, err := a.db.Query(ctx, selectRoles, accountID)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&version, &organisation, &role}, func() error {
			if organisation != "" {
				if granted == nil {
					granted = auth.Roles{}
				}
				granted[organisation] = auth.Role(role)
			}
			return nil
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the account's roles: %w", err)
	}
	return granted, version, nil
}

const (
	selectFailures = `
SELECT failure_key, free_time
FROM log_in_failures
WHERE failure_key = ANY($1::text[])`

	addFailure = `
INSERT INTO log_in_failures AS f (failure_key, free_time)
VALUES ($1, $2::timestamptz + make_interval(secs => $3))
ON CONFLICT (failure_key) DO UPDATE
SET free_time = greatest(f.free_time, $2::timestamptz) + make_interval(secs => $3)`
)

// debits are the budgets of wrong passwords that an attempt counts against.
func (a *accounts) debits(found password, nameKey, address string) []throttle.Debit {
	key := func(fields ...string) string { return base64.RawURLEncoding.EncodeToString(a.mac(fields...)) }
	name := throttle.Debit{Key: key("name", nameKey), Budget: a.throttle.Name}
	if address == "" {
		return []throttle.Debit{name}
	}
	if found.known {
		name.Key = key("place", found.account.AccountID, address)
	}
	return []throttle.Debit{name, {Key: key("address", address), Budget: a.throttle.Address}}
}

func (a *accounts) admit(ctx context.Context, debits []throttle.Debit) error {
	keys := make([]string, len(debits))
	for i, d := range debits {
		keys[i] = d.Key
	}
	var (
		key  string
		free time.Time
		wait time.Duration
		now  = time.Now()
	)
	rows, err := a.db.Query(ctx, selectFailures, keys)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&key, &free}, func() error {
			b := debits[slices.Index(keys, key)].Budget
			wait = max(wait, free.Sub(now)-time.Duration(b.Burst-1)*b.Every)
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("read the failed log-ins: %w", err)
	}
	if wait > 0 {
		return account.ErrThrottled.WithRetryAfter((wait + time.Second - 1).Truncate(time.Second))
	}
	return nil
}

// failed counts a wrong password; accountID is empty when nobody has the name.
func (a *accounts) failed(ctx context.Context, debits []throttle.Debit, accountID, address string) error {
	now := time.Now().UTC()
	event, err := newID("evt", now)
	if err != nil {
		return err
	}
	// In one order everywhere, so that two never wait for each other.
	slices.SortFunc(debits, func(x, y throttle.Debit) int { return strings.Compare(x.Key, y.Key) })
	err = pgx.BeginFunc(ctx, a.db, func(tx pgx.Tx) error {
		if accountID != "" {
			if _, err := tx.Exec(ctx, insertEvent, event, now, string(account.LogInFailed), accountID, "", address); err != nil {
				return err
			}
		}
		for _, d := range debits {
			if _, err := tx.Exec(ctx, addFailure, d.Key, now, d.Budget.Every.Seconds()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("count a wrong password: %w", err)
	}
	return nil
}

const selectAccount = `
SELECT account_id, name, create_time
FROM accounts
WHERE account_id = $1`

// read returns the caller's own account, by its id or as "me".
func (a *accounts) read(ctx context.Context, caller auth.Caller, id string) (accountMessage, error) {
	if id != "me" && id != caller.AccountID {
		return accountMessage{}, account.ErrNotYourAccount
	}
	var m accountMessage
	err := a.db.QueryRow(ctx, selectAccount, caller.AccountID).Scan(&m.AccountID, &m.Name, &m.CreateTime)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return accountMessage{}, account.ErrNotFound
	case err != nil:
		return accountMessage{}, fmt.Errorf("read the account: %w", err)
	}
	m.CreateTime = m.CreateTime.UTC()
	return m, nil
}
