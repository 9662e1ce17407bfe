package account

import (
	"strings"
	"unicode/utf8"

	"github.com/trustelem/zxcvbn"
	"golang.org/x/text/secure/precis"
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
