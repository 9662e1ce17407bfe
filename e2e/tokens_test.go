package e2e

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// Tokens that account did not sign are refused at the REST door with problem
// details that say why, and a log-out is effective in every service within the
// ten seconds that the API promises. (Expired tokens, and those of another
// environment, need account's key: platform/auth has their tests.)
func TestTokens(t *testing.T) {
	ctx := begin(t, time.Minute)
	d := openDoors(t, ctx)
	genuine := d.Accounts().LogIn(ctx, t, "tokens").GetAccessToken()

	published, err := accountv1.NewAccountServiceClient(d.GRPC).GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
	require.NoError(t, err)
	key := published.GetKeys()[0]
	parsed, _, err := jwt.NewParser().ParseUnverified(genuine, jwt.MapClaims{})
	require.NoError(t, err)
	claims := parsed.Claims
	_, forger, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	sign := func(method jwt.SigningMethod, keyID string, with any) string {
		token := jwt.NewWithClaims(method, claims)
		token.Header["kid"] = keyID
		text, err := token.SignedString(with)
		require.NoError(t, err)
		return text
	}

	for what, c := range map[string]struct{ token, reason string }{
		"no token":                        {"", "TOKEN_MISSING"},
		"not a token":                     {"abc", "TOKEN_INVALID"},
		"signed by somebody else":         {sign(jwt.SigningMethodEdDSA, key.GetKeyId(), forger), "TOKEN_INVALID"},
		"of a key that does not exist":    {sign(jwt.SigningMethodEdDSA, "key_none", forger), "TOKEN_INVALID"},
		"signed with the public key":      {sign(jwt.SigningMethodHS256, key.GetKeyId(), key.GetPublicKey()), "TOKEN_INVALID"},
		"with no signature":               {sign(jwt.SigningMethodNone, key.GetKeyId(), jwt.UnsafeAllowNoneSignatureType), "TOKEN_INVALID"},
		"with the last character cut off": {genuine[:len(genuine)-1], "TOKEN_INVALID"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := d.REST.Do(ctx, load.Request{Method: http.MethodGet, Path: "/v1/accounts/me", Token: c.token}, nil)
			requireProblem(t, err, http.StatusUnauthorized, c.reason)
		})
	}

	whoami := func(ctx context.Context) error {
		_, err := d.REST.Do(ctx, load.Request{Method: http.MethodGet, Path: "/v1/whoami", Token: genuine}, nil)
		return err
	}
	require.NoError(t, whoami(ctx), "echo, which verifies tokens by itself, accepts the genuine one")
	began := time.Now()
	_, err = d.REST.Do(ctx, load.Request{Method: http.MethodDelete, Path: "/v1/sessions/current", Token: genuine}, nil)
	require.NoError(t, err)
	scenario.Eventually(ctx, t, 10*time.Second, "the token is refused by another service", func() error {
		for range 4 { // both instances, through both gateways
			if err := whoami(ctx); err == nil {
				return errNotYet
			}
		}
		return nil
	})
	t.Logf("the log-out was effective in another service after %.1f s", time.Since(began).Seconds())
	requireProblem(t, whoami(ctx), http.StatusUnauthorized, "SESSION_ENDED")
	// The instance of account that did not end it hears of it as others do.
	me := func(ctx context.Context) error {
		_, err := d.REST.Do(ctx, load.Request{Method: http.MethodGet, Path: "/v1/accounts/me", Token: genuine}, nil)
		return err
	}
	scenario.Eventually(ctx, t, 10*time.Second, "the token is refused by account", func() error {
		for range 4 {
			if err := me(ctx); err == nil {
				return errNotYet
			}
		}
		return nil
	})
	requireProblem(t, me(ctx), http.StatusUnauthorized, "SESSION_ENDED")
}

func requireProblem(t *testing.T, err error, status int, reason string) {
	t.Helper()
	var problem *load.ProblemError
	require.True(t, errors.As(err, &problem), "%v", err)
	require.Equal(t, status, problem.HTTPStatus, "%s", problem.Body)
	var details struct {
		Reason    string `json:"reason"`
		RequestID string `json:"request_id"`
		Status    int    `json:"status"`
	}
	require.NoError(t, json.Unmarshal(problem.Body, &details), "%s", problem.Body)
	require.Equal(t, reason, details.Reason, "%s", problem.Body)
	require.Equal(t, status, details.Status)
	require.NotEmpty(t, details.RequestID)
}
