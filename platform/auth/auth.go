// Package auth verifies access tokens: who the account is on whose behalf a
// request is made. Tokens are JWTs signed with Ed25519 by the account service;
// every service verifies them by itself from published keys.
package auth

import (
	"context"
	"crypto/ed25519"
	"strings"

	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
)

// Caller is the account, or the API key of an organisation, on whose behalf a
// request is made.
type Caller struct {
	// AccountID is empty for an API key, and APIKeyID for an account.
	AccountID string
	APIKeyID  string
	// SessionID is the log-in; for an API key its id.
	SessionID string

	roles Roles
	// rolesVersion grows with each change of the account's roles.
	rolesVersion int64
}

// ID is the account's or the API key's id.
func (c Caller) ID() string {
	if c.APIKeyID != "" {
		return c.APIKeyID
	}
	return c.AccountID
}

// Role is the caller's role in an organisation, as the token says. On a method
// that needs a role it has been judged already, for the organisation that the
// request names.
func (c Caller) Role(organisationID string) (Role, bool) {
	role, ok := c.roles[organisationID]
	return role, ok
}

// Role is what a member of an organisation, or an API key of it, may do there.
type Role string

// The roles, as tokens name them.
const (
	Owner      Role = "owner"
	Advertiser Role = "advertiser"
	Operator   Role = "operator"
	Viewer     Role = "viewer"
)

// AllRoles are all roles, the mightiest first.
func AllRoles() []Role { return []Role{Owner, Advertiser, Operator, Viewer} }

// RoleOf is the role that methods name in their option; false for none.
func RoleOf(r accessv1.Role) (Role, bool) {
	switch r {
	case accessv1.Role_ROLE_OWNER:
		return Owner, true
	case accessv1.Role_ROLE_ADVERTISER:
		return Advertiser, true
	case accessv1.Role_ROLE_OPERATOR:
		return Operator, true
	case accessv1.Role_ROLE_VIEWER:
		return Viewer, true
	default:
		return "", false
	}
}

// Proto is the role as APIs name it.
func (r Role) Proto() accessv1.Role {
	return accessv1.Role(accessv1.Role_value["ROLE_"+strings.ToUpper(string(r))])
}

// Roles are the roles of one caller, by organisation id.
type Roles map[string]Role

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
	// SessionEnded says whether the session was ended, or the API key of this id
	// revoked.
	SessionEnded(sessionID string) bool
	// RolesVersion is the version from which on tokens of the account say what its
	// roles are; 0 when every token does that is valid.
	RolesVersion(accountID string) int64
}
