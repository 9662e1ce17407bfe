package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSteps(t *testing.T) {
	var text bytes.Buffer
	s := newSteps(&text)
	s.now = func() time.Time { return s.start.Add(12345 * time.Millisecond) }
	s.say("account: %d of %d", 1, 3)
	require.Equal(t, "  12.3s  account: 1 of 3\n", text.String())
}

// What takes its time says so, and what does not stays silent.
func TestSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		done := newSteps(&text).slowly("asking")
		time.Sleep(patience - time.Millisecond)
		done()
		require.Empty(t, text.String())
		done = newSteps(&text).slowly("asking")
		time.Sleep(patience + time.Millisecond)
		done()
		require.Equal(t, "   2.0s  asking\n", text.String())
	})
}
