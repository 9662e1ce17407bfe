// Package account decides who somebody is and proves it to the other services:
// accounts and their passwords, sessions, and signed access tokens.
package account

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Account is a person or a program with a name and a way to prove it.
type Account struct {
	// ID is "acc_" and a ULID.
	ID string
	// Name is as it was typed at sign-up; NameKey(Name) is unique.
	Name string
	// CreateTime is in UTC, to the microsecond that the database keeps.
	CreateTime time.Time
}

// NameKey is what names are compared by: without regard to case. Names are
// ASCII (the API's rule for SignUp), so that there is only one lower case.
func NameKey(name string) string { return strings.ToLower(name) }

// What callers are told. Validation of single fields happens before, by the
// rules in the .proto.
var (
	ErrNameTaken = fault.New(fault.AlreadyExists, "NAME_TAKEN", "this name belongs to another account").
			WithField("name", "unique", "belongs to another account; names are compared without regard to case")
	ErrRequestIDReused = fault.New(fault.Aborted, "REQUEST_ID_REUSED", "this request_id came before with another body: choose a new one").
				WithField("request_id", "unique", "came before with another body")
	ErrPasswordTooWeak  = fault.New(fault.InvalidArgument, "PASSWORD_TOO_WEAK", "the password is too easy to guess")
	ErrPasswordInvalid  = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the password holds characters that cannot be typed again reliably")
	ErrWrongCredentials = fault.New(fault.Unauthenticated, "WRONG_CREDENTIALS", "no account has this name and password")
	ErrNotYourAccount   = fault.New(fault.PermissionDenied, "NOT_YOUR_ACCOUNT", "only your own account can be read")
	ErrNotFound         = fault.New(fault.NotFound, "ACCOUNT_NOT_FOUND", "this account does not exist")
	ErrOverloaded       = fault.New(fault.ResourceExhausted, "OVERLOADED", "too many log-ins and sign-ups at once").
				WithRetryAfter(time.Second)
	ErrDatabaseUnavailable = fault.New(fault.Unavailable, "DATABASE_UNAVAILABLE", "the database cannot be reached at the moment").
				WithRetryAfter(time.Second)
	ErrSigningKeysUnavailable = fault.New(fault.Unavailable, "SIGNING_KEYS_UNAVAILABLE", "the signing keys are not up to date at the moment").
					WithRetryAfter(time.Second)
)

// newID makes an id: what it names, and a ULID.
func newID(prefix string, now time.Time, random io.Reader) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), random)
	if err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return prefix + "_" + id.String(), nil
}
