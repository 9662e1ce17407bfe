package fault_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
)

// A code that is added has to have a name, a status and a title of its own.
func TestCodes(t *testing.T) {
	names := map[string]bool{}
	for i, c := range fault.Codes() {
		require.Equal(t, fault.Code(i), c)
		require.NotEmpty(t, c.Title())
		require.False(t, names[c.String()], "the name %s is taken", c)
		names[c.String()] = true
		if c == fault.OK {
			require.Equal(t, 200, c.HTTPStatus())
			continue
		}
		require.GreaterOrEqual(t, c.HTTPStatus(), 400)
		require.Less(t, c.HTTPStatus(), 600)
	}
	require.Equal(t, "UNKNOWN", fault.Code(99).String())
}

func TestError(t *testing.T) {
	taken := fault.New(fault.AlreadyExists, "NAME_TAKEN", "the name %q is taken", "ann")
	cause := errors.New("23505")
	copied := taken.Because(cause).WithField("name", "unique", "is taken").WithRetryAfter(time.Second)

	require.Equal(t, `the name "ann" is taken`, copied.Message)
	require.ErrorIs(t, copied, taken, "a copy is still that error")
	require.ErrorIs(t, copied, cause)
	require.NotErrorIs(t, copied, fault.New(fault.NotFound, "NAME_TAKEN", ""))
	require.NotErrorIs(t, copied, fault.New(fault.AlreadyExists, "OTHER", ""))
	require.Contains(t, copied.Error(), "23505", "for logs")
	require.Equal(t, &fault.Error{Code: fault.AlreadyExists, Reason: "NAME_TAKEN", Message: taken.Message}, taken, "the original is unchanged")

	one, other := copied.WithField("a", "", ""), copied.WithField("b", "", "")
	require.Equal(t, "a", one.Fields[1].Path, "copies do not share fields")
	require.Equal(t, "b", other.Fields[1].Path)

	found, ok := fault.From(fmt.Errorf("signing up: %w", copied))
	require.True(t, ok)
	require.Same(t, copied, found)
	_, ok = fault.From(cause)
	require.False(t, ok)
}
