package auth

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Issuer is the "iss" claim of every access token.
const Issuer = "marquee/account"

const (
	// maxTokenBytes bounds what is parsed; a token of ours has about 350 bytes.
	maxTokenBytes = 8 << 10
	// leeway is how far the clocks of two machines may differ.
	leeway = 2 * time.Second
)

// Why a token is refused. All are UNAUTHENTICATED.
var (
	ErrTokenMissing = fault.New(fault.Unauthenticated, "TOKEN_MISSING", "this needs an access token: authorization: Bearer <token>")
	ErrTokenInvalid = fault.New(fault.Unauthenticated, "TOKEN_INVALID", "the access token is not valid")
	ErrTokenExpired = fault.New(fault.Unauthenticated, "TOKEN_EXPIRED", "the access token has expired")
	ErrSessionEnded = fault.New(fault.Unauthenticated, "SESSION_ENDED", "the session of this access token has ended")
)

// Why a valid token does not let its caller do something.
var (
	ErrRolesChanged = fault.New(fault.Unauthenticated, "ROLES_CHANGED",
		"the roles of this account changed after the access token was made: refresh the session")
	ErrNotAMember = fault.New(fault.PermissionDenied, "NOT_A_MEMBER",
		"this access token has no role in this organisation: if you have just joined, refresh the session")
	ErrRoleNotAllowed = fault.New(fault.PermissionDenied, "ROLE_NOT_ALLOWED", "your role in this organisation does not allow this")
	ErrAccountNeeded  = fault.New(fault.PermissionDenied, "ACCOUNT_NEEDED", "this is for people: an API key cannot do it")
)

// ErrKeysUnavailable says that no token can be judged now, because the signing
// keys and ended sessions have not been read for too long.
var ErrKeysUnavailable = fault.New(fault.Unavailable, "SIGNING_KEYS_UNAVAILABLE",
	"access tokens cannot be verified at the moment").WithRetryAfter(time.Second)

// Verifier turns an access token into the caller it stands for.
type Verifier struct {
	keys   Keys
	now    func() time.Time
	parser *jwt.Parser
	cache  *cache
	open   openCalls
}

// NewVerifier verifies tokens of one issuer made for one audience, which is
// the environment's name. now is the clock; nil is time.Now.
func NewVerifier(issuer, audience string, keys Keys, now func() time.Time) *Verifier {
	if now == nil {
		now = time.Now
	}
	return &Verifier{
		keys: keys,
		now:  now,
		parser: jwt.NewParser(
			// The only algorithm: neither "none" nor a MAC keyed with the
			// public key gets as far as a signature check.
			jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
			jwt.WithIssuer(issuer),
			jwt.WithAudience(audience),
			jwt.WithExpirationRequired(),
			jwt.WithIssuedAt(),
			jwt.WithLeeway(leeway),
			jwt.WithTimeFunc(now),
		),
		cache: newCache(cacheEntries),
	}
}

// APIKeyPrefix begins the ids of API keys, and so the "sub" of their tokens.
const APIKeyPrefix = "apk_"

// Claims are the claims of an access token: the registered ones (RFC 7519), the
// session, and the roles.
type Claims struct {
	jwt.RegisteredClaims
	SessionID    string `json:"sid"`
	Roles        Roles  `json:"org,omitempty"`
	RolesVersion int64  `json:"rv,omitempty"`
}

// Authorize says whether a verified caller has one of the allowed roles in an
// organisation. It fails with ErrRolesChanged, ErrNotAMember, or
// ErrRoleNotAllowed, whose metadata names the roles that would do.
func (v *Verifier) Authorize(c Caller, organisationID string, allowed []Role) error {
	if err := v.rolesStand(c); err != nil {
		return err
	}
	role, ok := c.roles[organisationID]
	switch {
	case !ok:
		return ErrNotAMember
	case !slices.Contains(allowed, role):
		return RoleNotAllowed(allowed)
	}
	return nil
}

func (v *Verifier) rolesStand(c Caller) error {
	if c.rolesVersion < v.keys.RolesVersion(c.AccountID) {
		return ErrRolesChanged
	}
	return nil
}

// RoleNotAllowed is ErrRoleNotAllowed with the roles that would do.
func RoleNotAllowed(allowed []Role) error {
	names := make([]string, len(allowed))
	for i, r := range allowed {
		names[i] = string(r)
	}
	e := *ErrRoleNotAllowed
	e.Message = fmt.Sprintf("%s: it needs to be %s", e.Message, strings.Join(names, " or "))
	e.Meta = map[string]string{"roles": strings.Join(names, " ")}
	return &e
}

// Verify returns the caller whose token this is. It fails with one of this
// package's faults; the metadata's "problem" says what is wrong with an
// invalid token. It never blocks.
func (v *Verifier) Verify(_ context.Context, token string) (Caller, error) {
	if token == "" {
		return Caller{}, ErrTokenMissing
	}
	if len(token) > maxTokenBytes {
		return Caller{}, invalid("longer than 8 KiB", nil)
	}
	if err := v.available(); err != nil {
		return Caller{}, err
	}
	verified, err := v.read(token)
	if err != nil {
		return Caller{}, err
	}
	if err := v.judge(&verified); err != nil {
		return Caller{}, err
	}
	return verified.caller, nil
}

func (v *Verifier) available() error {
	if a, ok := v.keys.(interface{ Available() error }); ok {
		if err := a.Available(); err != nil {
			return ErrKeysUnavailable.Because(err)
		}
	}
	return nil
}

// read checks a token's signature and claims, once while the cache holds it.
func (v *Verifier) read(token string) (verified, error) {
	if found, ok := v.cache.get(token); ok {
		return found, nil
	}
	found, err := v.parse(token)
	if err == nil {
		v.cache.put(token, found)
	}
	return found, err
}

// judge decides about what can change after the signature was checked.
func (v *Verifier) judge(t *verified) error {
	if !v.now().Before(t.expires.Add(leeway)) {
		return ErrTokenExpired
	}
	if key, ok := v.keys.PublicKey(t.keyID); !ok || !t.key.Equal(key) {
		return invalid("unknown key id", nil)
	}
	if v.keys.SessionEnded(t.caller.SessionID) {
		return ErrSessionEnded
	}
	return nil
}

// verified is a token whose signature and claims were found good.
type verified struct {
	caller  Caller
	keyID   string
	key     ed25519.PublicKey
	expires time.Time
}

func (v *Verifier) parse(token string) (verified, error) {
	var (
		c     Claims
		keyID string
		key   ed25519.PublicKey
	)
	_, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		keyID, _ = t.Header["kid"].(string)
		var ok bool
		if key, ok = v.keys.PublicKey(keyID); !ok || len(key) != ed25519.PublicKeySize {
			return nil, errUnknownKey
		}
		return key, nil
	})
	if err != nil {
		if p := problem(err); p != expired {
			return verified{}, invalid(p, err)
		}
		return verified{}, ErrTokenExpired.Because(err)
	}
	if c.Subject == "" || c.SessionID == "" {
		return verified{}, invalid("without account or session", nil)
	}
	caller := Caller{AccountID: c.Subject, SessionID: c.SessionID, roles: c.Roles, rolesVersion: c.RolesVersion}
	if strings.HasPrefix(c.Subject, APIKeyPrefix) {
		caller.AccountID, caller.APIKeyID = "", c.Subject
	}
	return verified{
		caller:  caller,
		keyID:   keyID,
		key:     key,
		expires: c.ExpiresAt.Time,
	}, nil
}

const expired = "expired"

var errUnknownKey = errors.New("unknown key id")

// problem names what is wrong, the worst first: a token that is expired and
// for another environment does not become good by logging in here again.
func problem(err error) string {
	switch {
	case errors.Is(err, errUnknownKey):
		return "unknown key id"
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "malformed"
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "wrong audience"
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return "wrong issuer"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "not valid yet"
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "a required claim is missing"
	case errors.Is(err, jwt.ErrTokenExpired):
		return expired
	case errors.Is(err, jwt.ErrTokenInvalidClaims):
		return "wrong claims"
	default:
		return "wrong signature or algorithm"
	}
}

func invalid(problem string, cause error) error {
	e := ErrTokenInvalid.Because(cause)
	e.Message = fmt.Sprintf("%s: %s", e.Message, problem)
	e.Meta = map[string]string{"problem": problem}
	return e
}

// NoKeys is for a service that runs without a source of keys: every token is
// answered with ErrKeysUnavailable.
type NoKeys struct{}

// PublicKey knows no key.
func (NoKeys) PublicKey(string) (ed25519.PublicKey, bool) { return nil, false }

// SessionEnded knows no session.
func (NoKeys) SessionEnded(string) bool { return false }

// RolesVersion knows of no change.
func (NoKeys) RolesVersion(string) int64 { return 0 }

// Available says why no token can be verified.
func (NoKeys) Available() error { return errors.New("this process runs without signing keys") }
