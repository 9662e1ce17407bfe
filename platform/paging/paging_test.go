package paging_test

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/paging"
)

func TestList(t *testing.T) {
	all := []int{1, 2, 3, 4, 5, 6, 7}
	read := func(_ context.Context, after string, limit int) ([]int, error) {
		first := 0
		if after != "" {
			n, err := strconv.Atoi(after)
			if err != nil {
				return nil, err
			}
			first = slices.Index(all, n) + 1
		}
		return all[first:min(first+limit, len(all))], nil
	}
	for _, size := range []int{0, 1, 2, 3, 6, 7, 8} {
		var got []int
		for page := (paging.Page{Size: size}); ; {
			some, next, err := paging.List(t.Context(), "numbers", page, read, strconv.Itoa)
			require.NoError(t, err)
			require.LessOrEqual(t, len(some), page.Limit())
			got = append(got, some...)
			if page.Token = next; next == "" {
				break
			}
			require.Len(t, some, page.Limit())
		}
		require.Equal(t, all, got, "pages of %d", size)
	}
	failed := errors.New("no")
	_, _, err := paging.List(t.Context(), "numbers", paging.Page{}, func(context.Context, string, int) ([]int, error) { return nil, failed }, strconv.Itoa)
	require.ErrorIs(t, err, failed)
	require.ErrorContains(t, err, "reading a page of the numbers")
}

func TestTokens(t *testing.T) {
	position, err := paging.Page{Token: paging.Seal("orders of org_1", "ord_2")}.Open("orders of org_1")
	require.NoError(t, err)
	require.Equal(t, "ord_2", position)
	sealed := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for name, token := range map[string]string{
		"ErrOfAnother": paging.Seal("orders of org_2", "ord_2"), "ErrNoBase64": "?", "ErrNoPosition": paging.Seal("orders of org_1", ""),
		"ErrNul": paging.Seal("orders of org_1", "a\x00b"), "ErrNoText": paging.Seal("orders of org_1", "\xff"), "ErrNoList": sealed("ord_2"), "ErrPadded": sealed("orders of org_1:x") + "=",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := paging.Page{Token: token}.Open("orders of org_1")
			require.ErrorIs(t, err, paging.ErrTokenInvalid)
		})
	}
}
