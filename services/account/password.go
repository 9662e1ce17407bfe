package account

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/trustelem/zxcvbn"
	"golang.org/x/text/secure/precis"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	minPasswordRunes = 8
	// estimatedRunes bounds the work of the estimate, which grows faster than
	// the password; what comes after them only makes it stronger.
	estimatedRunes = 64
	// minScore is the least score on zxcvbn's scale of 0 to 4 that is taken: at
	// least 10^6 guesses. Log-in is slow and bounded, so that more is not needed.
	minScore = 2
)

// preparePassword brings a password into the one form that is hashed (RFC 8265,
// OpaqueString), so that it is the same on every keyboard.
func preparePassword(password string) (string, error) {
	prepared, err := precis.OpaqueString.String(password)
	if err != nil {
		return "", ErrPasswordInvalid.WithField("password", "password.characters", "holds control characters or characters that Unicode does not define").Because(err)
	}
	return prepared, nil
}

// checkPassword refuses what is guessed first. The field violation says why.
func checkPassword(prepared, name string) error {
	weak := func(rule, why string) error { return ErrPasswordTooWeak.WithField("password", rule, why) }

	if utf8.RuneCountInString(prepared) < minPasswordRunes {
		return weak("password.min_len", "has fewer than 8 characters")
	}
	lower, key := strings.ToLower(prepared), NameKey(name)
	local, _, _ := strings.Cut(key, "@")
	if strings.Contains(lower, key) || (len(local) >= 4 && strings.Contains(lower, local)) {
		return weak("password.contains_name", "contains the account's name")
	}

	head := prepared
	if runes := []rune(prepared); len(runes) > estimatedRunes {
		head = string(runes[:estimatedRunes])
	}
	estimate := zxcvbn.PasswordStrength(head, []string{key, local, "marquee"})
	if estimate.Score >= minScore {
		return nil
	}
	// The longest part that was recognised is the reason worth telling.
	longest, pattern := 0, ""
	for _, m := range estimate.Sequence {
		if n := len(m.Token); m.Pattern != "bruteforce" && n > longest {
			longest, pattern = n, m.Pattern
		}
	}
	switch pattern {
	case "dictionary":
		return weak("password.common", "is among the commonest passwords, or a common word with little added")
	case "repeat":
		return weak("password.repeated", "repeats the same few characters")
	case "sequence":
		return weak("password.sequence", "is a sequence such as abcdefgh or 12345678")
	case "spatial":
		return weak("password.keyboard", "is a walk over the keyboard such as qwertyui")
	case "date", "regex":
		return weak("password.date", "is a date or a year with little added")
	default:
		return weak("password.guessable", "is found with few guesses")
	}
}

// PasswordOf says whose password is wanted: by NameKey, or by AccountID when
// that is empty.
type PasswordOf struct {
	NameKey, AccountID string
	// Address is where the attempt comes from.
	Address string
}

// Password is an account with its password's hash.
type Password struct {
	Account Account
	Hash    string
	// Generation counts how often the password was changed.
	Generation int
	// Known is whether the account was logged in to from the address asked with,
	// within the time that sessions are kept.
	Known bool
}

// ChangePassword sets a new password and ends all of the account's sessions but
// the caller's. It changes nothing when the new password is in place already.
// Errors: ErrWrongPassword, ErrThrottled, ErrPasswordTooWeak, ErrPasswordInvalid,
// ErrPasswordChanged, ErrNotFound, ErrOverloaded.
func (s *Service) ChangePassword(ctx context.Context, caller auth.Caller, current, replacement string, from Origin) error {
	hash, generation, err := s.nextPassword(ctx, caller, current, replacement, from)
	if err != nil || hash == "" {
		return err
	}
	event, err := s.event(PasswordChanged, caller.AccountID, caller.AccountID, from)
	if err != nil {
		return err
	}
	event.SessionID = caller.SessionID
	ended, err := s.store.ChangePassword(ctx, generation, hash, *event)
	if err != nil {
		return fmt.Errorf("storing the new password: %w", err)
	}
	s.announceEnd(ended...)
	return nil
}

// nextPassword verifies the current password and returns its generation and the
// hash of the new one, which is empty when that is in place already.
func (s *Service) nextPassword(ctx context.Context, caller auth.Caller, current, replacement string, from Origin) (hash string, generation int, err error) {
	prepared, err := preparePassword(replacement)
	if err != nil {
		return "", 0, renamed(err, "new_password")
	}
	done, err := s.hasher.Turn(ctx)
	if err != nil {
		return "", 0, err
	}
	defer done()

	found, err := s.store.FindPassword(ctx, PasswordOf{AccountID: caller.AccountID})
	if err != nil {
		return "", 0, fmt.Errorf("looking for the account: %w", err)
	}
	// Whoever stole an access token must not find the password out, nor keep the
	// account's own from changing it in another session.
	debits := s.debits("", "session "+caller.SessionID, false, "", Origin{})
	if err := s.admit(ctx, debits); err != nil {
		return "", 0, err
	}
	if err := renamed(checkPassword(prepared, found.Account.Name), "new_password"); err != nil {
		return "", 0, err
	}
	match := false
	if old, invalid := preparePassword(current); invalid == nil {
		if match, _, err = s.hasher.Verify(old, found.Hash); err != nil {
			return "", 0, fmt.Errorf("verifying the password of %s: %w", found.Account.ID, err)
		}
	}
	if !match {
		again, _, err := s.hasher.Verify(prepared, found.Hash)
		switch {
		case err != nil:
			return "", 0, fmt.Errorf("verifying the password of %s: %w", found.Account.ID, err)
		case again: // a repeat
			return "", 0, nil
		}
		return "", 0, s.failed(ctx, debits, PasswordChangeFailed, found.Account.ID, caller.SessionID, from, ErrWrongPassword)
	}
	hash, err = s.hasher.Hash(prepared)
	return hash, found.Generation, err
}

// renamed is a fault about the field "password" for a request that calls it
// something else.
func renamed(err error, field string) error {
	f, ok := fault.From(err)
	if !ok {
		return err
	}
	c := *f
	c.Fields = slices.Clone(f.Fields)
	for i := range c.Fields {
		if c.Fields[i].Path == "password" {
			c.Fields[i].Path = field
		}
	}
	return &c
}
