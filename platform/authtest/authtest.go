// Package authtest stands in for the account service in the tests of other
// services: it publishes a signing key, and signs access tokens with it.
package authtest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

const keyID = "authtest"

// Account answers GetSigningKeys in plaintext on loopback, until the test ends.
type Account struct {
	accountv1.UnimplementedAccountServiceServer
	key     ed25519.PrivateKey
	address string

	mu    sync.Mutex
	ended []*accountv1.EndedSession
}

// Start starts one. A service under test reaches it by
// service.Config.Upstreams{"account": {a.Address()}}.
func Start(tb testing.TB) *Account {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatalf("authtest: making a key: %v", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("authtest: %v", err)
	}
	a := &Account{key: key, address: listener.Addr().String()}
	server := grpc.NewServer()
	accountv1.RegisterAccountServiceServer(server, a)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	tb.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			tb.Errorf("authtest: %v", err)
		}
	})
	return a
}

// Address is where it listens.
func (a *Account) Address() string { return a.address }

// EndSession ends the session of an account's tokens, as services come to know.
func (a *Account) EndSession(accountID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = append(a.ended, &accountv1.EndedSession{SessionId: sessionOf(accountID)})
}

func sessionOf(accountID string) string { return "ses_" + accountID }

// GetSigningKeys publishes the key and the sessions that ended.
func (a *Account) GetSigningKeys(context.Context, *accountv1.GetSigningKeysRequest) (*accountv1.GetSigningKeysResponse, error) {
	public, ok := a.key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("the key has no public key of its kind")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &accountv1.GetSigningKeysResponse{
		Keys: []*accountv1.SigningKey{{
			KeyId: keyID, PublicKey: public, ExpireTime: timestamppb.New(time.Now().Add(time.Hour)),
		}},
		EndedSessions: slices.Clone(a.ended),
	}, nil
}

// Context is ctx with an access token of an account without roles, good for five
// minutes in one environment, as a gRPC client sends it.
func (a *Account) Context(ctx context.Context, tb testing.TB, environment, accountID string) context.Context {
	tb.Helper()
	return a.ContextWithRoles(ctx, tb, environment, accountID, nil)
}

// ContextWithRoles is Context for an account that has roles.
func (a *Account) ContextWithRoles(ctx context.Context, tb testing.TB, environment, accountID string, roles auth.Roles) context.Context {
	tb.Helper()
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, auth.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: auth.Issuer, Audience: jwt.ClaimStrings{environment}, Subject: accountID,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
		},
		SessionID: sessionOf(accountID), Roles: roles,
	})
	token.Header["kid"] = keyID
	signed, err := token.SignedString(a.key)
	if err != nil {
		tb.Fatalf("authtest: signing a token: %v", err)
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+signed)
}
