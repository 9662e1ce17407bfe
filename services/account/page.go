package account

import (
	"context"
	"encoding/base64"
	"fmt"

	"github.com/marquee-ads/marquee/platform/paging"
)

// list returns one page and the token of the next, empty on the last. of names
// the list: a token of another is refused. read returns up to limit entries with
// an id that is less than before ("" is the beginning), the greatest first.
// Errors: ErrPageTokenInvalid.
func list[T any](ctx context.Context, s *Service, of string, page paging.Page, read func(ctx context.Context, before string, limit int) ([]T, error), id func(T) string) ([]T, string, error) {
	before, err := s.secret.openPage(of, page.Token)
	if err != nil {
		return nil, "", err
	}
	size := page.Limit()
	// One more than asked for tells whether there is another page.
	entries, err := read(ctx, before, size+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading a page of the %s: %w", of, err)
	}
	if len(entries) <= size {
		return entries, "", nil
	}
	return entries[:size], s.secret.sealPage(of, id(entries[size-1])), nil
}

const pageMACBytes = 16

// sealPage makes the token of the page behind an id. Ids are no secret from who
// reads the list; the MAC keeps callers from making up positions.
func (s *Secret) sealPage(of, id string) string {
	return base64.RawURLEncoding.EncodeToString(append(s.mac(ofPages, of, id)[:pageMACBytes], id...))
}

func (s *Secret) openPage(of, token string) (before string, err error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) <= pageMACBytes {
		return "", ErrPageTokenInvalid
	}
	before = string(raw[pageMACBytes:])
	if s.sealPage(of, before) != token {
		return "", ErrPageTokenInvalid
	}
	return before, nil
}
