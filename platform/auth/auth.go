// Package auth verifies access tokens: who the account is on whose behalf a
// request is made. Tokens are JWTs signed with Ed25519 by the account service;
// every service verifies them by itself from published keys.
package auth

import (
	"context"
	"crypto/ed25519"
)

// Caller is the account on whose behalf a request is made.
type Caller struct {
	AccountID string
	SessionID string
}

type callerKey struct{}

// ContextWithCaller returns a context that carries the caller.
func ContextWithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFromContext is the verified caller. It is present on methods for
// accounts (CALLER_ACCOUNT) and absent on all others: where anyone may call, a
// token is not looked at, so that an expired one cannot stand in the way of the
// log-in that replaces it.
func CallerFromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Keys are what a Verifier needs to know; they change while it runs.
// Implementations answer from memory and never block.
type Keys interface {
	// PublicKey returns the key with this id, if tokens signed with it are accepted now.
	PublicKey(keyID string) (ed25519.PublicKey, bool)
	// SessionEnded says whether the session was ended by log-out.
	SessionEnded(sessionID string) bool
}
