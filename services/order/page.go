package order

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// Page says which part of a list is wanted.
type Page struct {
	// Size is how many at most; 0 is 50.
	Size int
	// Token is what the page before came with; empty for the first.
	Token string
}

const defaultPageSize = 50

func (p Page) size() int {
	if p.Size <= 0 {
		return defaultPageSize
	}
	return p.Size
}

// open returns the position of a list that a token stands for, "" for the
// beginning. of names the list: a token of another is refused. A position is no
// secret from who reads the list; the token is encoded so that nobody builds on
// what is in it. Errors: ErrPageTokenInvalid.
func (p Page) open(of string) (string, error) {
	if p.Token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(p.Token)
	if err != nil {
		return "", ErrPageTokenInvalid.Because(err)
	}
	position, ok := strings.CutPrefix(string(raw), of+":")
	// Postgres would not take it.
	storable := utf8.ValidString(position) && !strings.ContainsRune(position, 0)
	if !ok || position == "" || !storable {
		return "", ErrPageTokenInvalid
	}
	return position, nil
}

func sealPage(of, position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(of + ":" + position))
}
