// Package account decides who somebody is, and what they are in which
// organisation, and proves it to the other services by signed access tokens.
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

// NameKey is what names are compared by: without regard to case. Names are ASCII
// (the API's rule for SignUp), so that no letter of another script looks like one
// of theirs; and only ASCII is brought to lower case, so that at log-in none is
// taken for one either, as the Kelvin sign would be for a k.
func NameKey(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, name)
}

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
	ErrWrongPassword    = fault.New(fault.PermissionDenied, "WRONG_PASSWORD", "the current password is not this one").
				WithField("current_password", "password.match", "is not the account's password")
	ErrPasswordChanged = fault.New(fault.Aborted, "PASSWORD_CHANGED_MEANWHILE", "the password was changed by another request: try again with the new one")
	ErrThrottled       = fault.New(fault.ResourceExhausted, "LOG_IN_THROTTLED", "too many wrong passwords: wait before the next try")

	ErrRefreshTokenInvalid = fault.New(fault.Unauthenticated, "REFRESH_TOKEN_INVALID", "this is no refresh token, or its session is gone: log in again")
	ErrRefreshTokenExpired = fault.New(fault.Unauthenticated, "REFRESH_TOKEN_EXPIRED", "the refresh token has expired: log in again")
	ErrRefreshTokenReused  = fault.New(fault.Unauthenticated, "REFRESH_TOKEN_REUSED", "the refresh token was used before, so the session has ended: log in again")
	ErrNoSuchSession       = fault.New(fault.NotFound, "SESSION_NOT_FOUND", "you have no such session")
	ErrPageTokenInvalid    = fault.New(fault.InvalidArgument, "PAGE_TOKEN_INVALID", "the page token is not one of this list").
				WithField("page_token", "page_token", "is not a next_page_token of this list")

	ErrNotYourAccount = fault.New(fault.PermissionDenied, "NOT_YOUR_ACCOUNT", "only your own account can be read")
	ErrNotFound       = fault.New(fault.NotFound, "ACCOUNT_NOT_FOUND", "this account does not exist")
	ErrOverloaded     = fault.New(fault.ResourceExhausted, "OVERLOADED", "too many log-ins and sign-ups at once").
				WithRetryAfter(time.Second)
	ErrPagesNeeded = fault.New(fault.FailedPrecondition, "PAGES_NEEDED", "more has ended than fits into one answer: ask with a page_size, and for all pages").
			WithField("page_size", "page_size.needed", "is needed, since more has ended than fits into one answer")
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
