package auth_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
)

// keyring is a set of keys that a test changes.
type keyring struct {
	mu    sync.Mutex
	keys  map[string]ed25519.PublicKey
	ended map[string]bool
	roles map[string]int64
	asked int
}

func (k *keyring) RolesVersion(accountID string) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.roles[accountID]
}

func (k *keyring) PublicKey(id string) (ed25519.PublicKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	key, ok := k.keys[id]
	return key, ok
}

func (k *keyring) SessionEnded(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended[id]
}

// issuer makes tokens.
type issuer struct {
	keyID string
	key   ed25519.PrivateKey
	keys  *keyring
}

func newIssuer(t testing.TB) *issuer {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return &issuer{keyID: "k1", key: private, keys: &keyring{keys: map[string]ed25519.PublicKey{"k1": public}, ended: map[string]bool{}}}
}

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func claims() jwt.MapClaims {
	return jwt.MapClaims{
		"iss": "marquee/account", "aud": "test", "sub": "acc_1", "sid": "s1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
}

func (i *issuer) token(t testing.TB, c jwt.MapClaims) string {
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	token.Header["kid"] = i.keyID
	signed, err := token.SignedString(i.key)
	require.NoError(t, err)
	return signed
}

func (i *issuer) verifier() *auth.Verifier {
	return auth.NewVerifier("marquee/account", "test", i.keys, func() time.Time { return now })
}

func TestVerify(t *testing.T) {
	i := newIssuer(t)
	public := i.keys.keys["k1"]
	with := func(key string, value any) func(*testing.T) string {
		return func(t *testing.T) string {
			c := claims()
			if value == nil {
				delete(c, key)
			} else {
				c[key] = value
			}
			return i.token(t, c)
		}
	}
	signedBy := func(method jwt.SigningMethod, key any, kid string) func(*testing.T) string {
		return func(t *testing.T) string {
			token := jwt.NewWithClaims(method, claims())
			token.Header["kid"] = kid
			signed, err := token.SignedString(key)
			require.NoError(t, err)
			return signed
		}
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)

	for _, test := range []struct {
		name    string
		token   func(*testing.T) string
		want    error
		problem string
	}{
		{name: "OK", token: with("x", "y")},
		{name: "OneOfSeveralAudiences", token: with("aud", []string{"other", "test"})},
		{name: "WithinLeeway", token: with("exp", now.Add(-time.Second).Unix())},
		{name: "Missing", token: func(*testing.T) string { return "" }, want: auth.ErrTokenMissing},
		{name: "Expired", token: with("exp", now.Add(-time.Minute).Unix()), want: auth.ErrTokenExpired},
		{name: "ExpiredAndWrongAudience", want: auth.ErrTokenInvalid, problem: "wrong audience", token: func(t *testing.T) string {
			c := claims()
			c["exp"], c["aud"] = now.Add(-time.Minute).Unix(), "production"
			return i.token(t, c)
		}},
		{name: "WithoutExpiry", token: with("exp", nil), want: auth.ErrTokenInvalid, problem: "a required claim is missing"},
		{name: "NotYetValid", token: with("nbf", now.Add(time.Minute).Unix()), want: auth.ErrTokenInvalid, problem: "not valid yet"},
		{name: "IssuedInTheFuture", token: with("iat", now.Add(time.Minute).Unix()), want: auth.ErrTokenInvalid, problem: "not valid yet"},
		{name: "WrongAudience", token: with("aud", "production"), want: auth.ErrTokenInvalid, problem: "wrong audience"},
		{name: "WithoutAudience", token: with("aud", nil), want: auth.ErrTokenInvalid, problem: "a required claim is missing"},
		{name: "WrongIssuer", token: with("iss", "somebody"), want: auth.ErrTokenInvalid, problem: "wrong issuer"},
		{name: "WithoutIssuer", token: with("iss", nil), want: auth.ErrTokenInvalid, problem: "a required claim is missing"},
		{name: "WithoutSubject", token: with("sub", nil), want: auth.ErrTokenInvalid, problem: "without account or session"},
		{name: "WithoutSession", token: with("sid", nil), want: auth.ErrTokenInvalid, problem: "without account or session"},
		{name: "SubjectIsANumber", token: with("sub", 7), want: auth.ErrTokenInvalid, problem: "malformed"},
		{name: "UnknownKey", token: signedBy(jwt.SigningMethodEdDSA, i.key, "k9"), want: auth.ErrTokenInvalid, problem: "unknown key id"},
		{name: "ForgedSignature", token: signedBy(jwt.SigningMethodEdDSA, stranger, "k1"), want: auth.ErrTokenInvalid, problem: "wrong signature or algorithm"},
		{name: "AlgorithmNone", token: signedBy(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "k1"), want: auth.ErrTokenInvalid, problem: "wrong signature or algorithm"},
		{name: "HS256WithThePublicKey", token: signedBy(jwt.SigningMethodHS256, []byte(public), "k1"), want: auth.ErrTokenInvalid, problem: "wrong signature or algorithm"},
		{name: "ChangedClaims", want: auth.ErrTokenInvalid, problem: "wrong signature or algorithm", token: func(t *testing.T) string {
			parts := strings.Split(i.token(t, claims()), ".")
			body, err := base64.RawURLEncoding.DecodeString(parts[1])
			require.NoError(t, err)
			changed := strings.Replace(string(body), "acc_1", "acc_2", 1)
			require.NotEqual(t, string(body), changed)
			parts[1] = base64.RawURLEncoding.EncodeToString([]byte(changed))
			return strings.Join(parts, ".")
		}},
		{name: "Garbage", token: func(*testing.T) string { return "a.b.c" }, want: auth.ErrTokenInvalid, problem: "malformed"},
		{name: "Oversized", token: func(*testing.T) string { return strings.Repeat("a", 9000) }, want: auth.ErrTokenInvalid, problem: "longer than 8 KiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, token := i.verifier(), test.token(t)
			// The second time comes from the cache, if it was let into it.
			for range 2 {
				caller, err := v.Verify(context.Background(), token)
				if test.want == nil {
					require.NoError(t, err)
					require.Equal(t, auth.Caller{AccountID: "acc_1", SessionID: "s1"}, caller)
					continue
				}
				require.ErrorIs(t, err, test.want)
				require.Zero(t, caller)
				f, ok := fault.From(err)
				require.True(t, ok)
				require.Equal(t, fault.Unauthenticated, f.Code)
				require.Equal(t, test.problem, f.Meta["problem"])
			}
		})
	}
}

// What the cache holds is judged again each time.
func TestVerifyAgain(t *testing.T) {
	i := newIssuer(t)
	clock := now
	v := auth.NewVerifier("marquee/account", "test", i.keys, func() time.Time { return clock })
	token := i.token(t, claims())
	verify := func() error {
		_, err := v.Verify(context.Background(), token)
		return err
	}
	require.NoError(t, verify())
	t.Run("SessionEnded", func(t *testing.T) {
		i.keys.ended["s1"] = true
		require.ErrorIs(t, verify(), auth.ErrSessionEnded)
		delete(i.keys.ended, "s1")
		require.NoError(t, verify())
	})
	t.Run("KeyWithdrawn", func(t *testing.T) {
		key := i.keys.keys["k1"]
		delete(i.keys.keys, "k1")
		require.ErrorIs(t, verify(), auth.ErrTokenInvalid)
		i.keys.keys["k1"] = key
		require.NoError(t, verify())
	})
	t.Run("KeyReplacedUnderTheSameID", func(t *testing.T) {
		key := i.keys.keys["k1"]
		i.keys.keys["k1"] = newIssuer(t).keys.keys["k1"]
		require.ErrorIs(t, verify(), auth.ErrTokenInvalid)
		i.keys.keys["k1"] = key
		require.NoError(t, verify())
	})
	t.Run("Expired", func(t *testing.T) {
		clock = now.Add(5*time.Minute + 3*time.Second)
		require.ErrorIs(t, verify(), auth.ErrTokenExpired)
	})
}

func TestAuthorize(t *testing.T) {
	i := newIssuer(t)
	v := i.verifier()
	person := claims()
	person["org"] = map[string]string{"org_1": "owner", "org_2": "viewer", "org_3": "emperor"}
	person["rv"] = 7
	program := claims()
	program["sub"], program["sid"] = "apk_1", "apk_1"
	program["org"] = map[string]string{"org_1": "operator"}
	verify := func(t *testing.T, c jwt.MapClaims) auth.Caller {
		caller, err := v.Verify(context.Background(), i.token(t, c))
		require.NoError(t, err)
		return caller
	}
	owners := []auth.Role{auth.Owner}
	for name, tc := range map[string]struct {
		claims       jwt.MapClaims
		organisation string
		allowed      []auth.Role
		version      int64
		want         error
	}{
		"OK":                  {person, "org_1", owners, 0, nil},
		"OKOneOfSeveral":      {person, "org_2", []auth.Role{auth.Operator, auth.Viewer}, 0, nil},
		"OKOfThisVersion":     {person, "org_1", owners, 7, nil},
		"OKProgram":           {program, "org_1", auth.AllRoles(), 0, nil},
		"ErrRolesChanged":     {person, "org_1", owners, 8, auth.ErrRolesChanged},
		"ErrNotAMember":       {person, "org_9", owners, 0, auth.ErrNotAMember},
		"ErrNoOrganisation":   {person, "", auth.AllRoles(), 0, auth.ErrNotAMember},
		"ErrNoRoles":          {claims(), "org_1", auth.AllRoles(), 0, auth.ErrNotAMember},
		"ErrRoleNotAllowed":   {person, "org_2", owners, 0, auth.ErrRoleNotAllowed},
		"ErrUnknownRole":      {person, "org_3", auth.AllRoles(), 0, auth.ErrRoleNotAllowed},
		"ErrProgram":          {program, "org_1", owners, 0, auth.ErrRoleNotAllowed},
		"ErrProgramOfAnother": {program, "org_2", auth.AllRoles(), 0, auth.ErrNotAMember},
	} {
		t.Run(name, func(t *testing.T) {
			i.keys.roles = map[string]int64{"acc_1": tc.version}
			require.ErrorIs(t, v.Authorize(verify(t, tc.claims), tc.organisation, tc.allowed), tc.want)
		})
	}
	t.Run("OKCaller", func(t *testing.T) {
		caller := verify(t, program)
		require.Equal(t, [3]string{"", "apk_1", "apk_1"}, [3]string{caller.AccountID, caller.APIKeyID, caller.ID()})
		role, ok := caller.Role("org_1")
		require.True(t, ok)
		require.Equal(t, auth.Operator, role)
		require.Equal(t, "acc_1", verify(t, person).ID())
	})
	t.Run("ErrTellsWhichRolesWouldDo", func(t *testing.T) {
		f, ok := fault.From(auth.RoleNotAllowed([]auth.Role{auth.Owner, auth.Operator}))
		require.True(t, ok)
		require.Equal(t, "owner operator", f.Meta["roles"])
		require.ErrorContains(t, f, "it needs to be owner or operator")
	})
	t.Run("ErrRolesOfAnotherForm", func(t *testing.T) {
		c := claims()
		c["org"] = []string{"org_1"}
		_, err := v.Verify(context.Background(), i.token(t, c))
		require.ErrorIs(t, err, auth.ErrTokenInvalid)
	})
}

func TestNoKeys(t *testing.T) {
	v := auth.NewVerifier("marquee/account", "test", auth.NoKeys{}, nil)
	_, err := v.Verify(context.Background(), newIssuer(t).token(t, claims()))
	require.ErrorIs(t, err, auth.ErrKeysUnavailable)
	_, err = v.Verify(context.Background(), "")
	require.ErrorIs(t, err, auth.ErrTokenMissing)
}

// Whatever bytes come: no panic, and no caller without a signature.
func FuzzVerify(f *testing.F) {
	i := newIssuer(f)
	good := i.token(f, claims())
	f.Add(good)
	f.Add(strings.ToUpper(good))
	f.Add("..")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	v := i.verifier()
	f.Fuzz(func(t *testing.T, token string) {
		caller, err := v.Verify(context.Background(), token)
		if err == nil && token != good {
			// Base64 has spare bits, so another spelling of the same token may
			// be accepted; another content may not.
			require.Equal(t, strings.Split(good, ".")[:2], strings.Split(token, ".")[:2])
		}
		if err != nil {
			require.Zero(t, caller)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	i := newIssuer(b)
	token := i.token(b, claims())
	b.Run("Cached", func(b *testing.B) {
		v := i.verifier()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(context.Background(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("First", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := i.verifier().Verify(context.Background(), token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
