// Package paging reads long lists part by part. The token of the next part is a
// position of the list, encoded so that nobody builds on what is in it; it is no secret
// from who reads the list.
package paging

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/marquee-ads/marquee/platform/fault"
)

// DefaultSize is how many entries a page has when nobody says.
const DefaultSize = 50

// ErrTokenInvalid is what callers are told whose token is not of the list.
var ErrTokenInvalid = fault.New(fault.InvalidArgument, "PAGE_TOKEN_INVALID", "this page_token is none that an answer came with").
	WithField("page_token", "page_token", "is none that an answer came with")

// Page says which part of a list is wanted.
type Page struct {
	// Size is how many entries at most; 0 is DefaultSize.
	Size int
	// Token is what the page before came with; empty for the first.
	Token string
}

// Limit is how many entries the page has at most.
func (p Page) Limit() int {
	if p.Size <= 0 {
		return DefaultSize
	}
	return p.Size
}

// Open returns the position that the token stands for, "" for the beginning. of names
// the list: a token of another is refused. Errors: ErrTokenInvalid.
func (p Page) Open(of string) (string, error) {
	if p.Token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(p.Token)
	if err != nil {
		return "", ErrTokenInvalid.Because(err)
	}
	position, ok := strings.CutPrefix(string(raw), of+":")
	// Postgres would not take it.
	storable := utf8.ValidString(position) && !strings.ContainsRune(position, 0)
	if !ok || position == "" || !storable {
		return "", ErrTokenInvalid
	}
	return position, nil
}

// Seal is the token of a position of a list.
func Seal(of, position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(of + ":" + position))
}

// List returns one page of a list, and the token of the next, empty on the last. read
// returns up to limit entries from after a position on, "" being the beginning, and
// position is that of an entry. Errors: ErrTokenInvalid.
func List[T any](ctx context.Context, of string, page Page, read func(ctx context.Context, after string, limit int) ([]T, error), position func(T) string) ([]T, string, error) {
	after, err := page.Open(of)
	if err != nil {
		return nil, "", err
	}
	size := page.Limit()
	// One more than asked for tells whether there is another page.
	found, err := read(ctx, after, size+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading a page of the %s: %w", of, err)
	}
	if len(found) <= size {
		return found, "", nil
	}
	return found[:size], Seal(of, position(found[size-1])), nil
}
