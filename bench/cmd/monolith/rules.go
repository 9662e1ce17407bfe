package main

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/trustelem/zxcvbn"
	"golang.org/x/text/secure/precis"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/account"
)

// The rules of account.proto, and of the account service for passwords.
var (
	requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	namePattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._@+-]*[A-Za-z0-9])?$`)

	errInvalid = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the request breaks the rules of its fields")
)

const (
	maxPassword    = 256
	weakest        = 8
	estimatedRunes = 64
	leastScore     = 2
)

// broken collects the fields that break their rules.
type broken []fault.Field

func (b *broken) text(field, value string, least, most int, pattern *regexp.Regexp) {
	n := utf8.RuneCountInString(value)
	switch {
	case n < least:
		*b = append(*b, fault.Field{Path: field, Rule: "string.min_len", Description: "is too short"})
	case n > most:
		*b = append(*b, fault.Field{Path: field, Rule: "string.max_len", Description: "is too long"})
	case pattern != nil && !pattern.MatchString(value):
		*b = append(*b, fault.Field{Path: field, Rule: "string.pattern", Description: "holds other characters than it may"})
	}
}

func (b *broken) err() error {
	if len(*b) == 0 {
		return nil
	}
	f := *errInvalid
	f.Fields = *b
	return &f
}

func (r signUpRequest) validate() error {
	var b broken
	b.text("request_id", r.RequestID, 8, 64, requestIDPattern)
	b.text("name", r.Name, 3, 64, namePattern)
	b.text("password", r.Password, weakest, maxPassword, nil)
	return b.err()
}

func (r logInRequest) validate() error {
	var b broken
	b.text("name", r.Name, 1, 64, nil)
	b.text("password", r.Password, 1, maxPassword, nil)
	return b.err()
}

// preparePassword brings a password into the form that is hashed.
func preparePassword(password string) (string, error) {
	prepared, err := precis.OpaqueString.String(password)
	if err != nil {
		return "", account.ErrPasswordInvalid.WithField("password", "password.characters", "holds characters that cannot be typed again reliably").Because(err)
	}
	return prepared, nil
}

// checkPassword refuses what is guessed first.
func checkPassword(prepared, name string) error {
	weak := func(rule, why string) error { return account.ErrPasswordTooWeak.WithField("password", rule, why) }
	if utf8.RuneCountInString(prepared) < weakest {
		return weak("password.min_len", "is too short")
	}
	lower, key := strings.ToLower(prepared), account.NameKey(name)
	local, _, _ := strings.Cut(key, "@")
	if strings.Contains(lower, key) || len(local) >= 4 && strings.Contains(lower, local) {
		return weak("password.contains_name", "contains the account's name")
	}
	head := []rune(prepared)
	if zxcvbn.PasswordStrength(string(head[:min(len(head), estimatedRunes)]), []string{key, local, "marquee"}).Score < leastScore {
		return weak("password.guessable", "is found with few guesses")
	}
	return nil
}
