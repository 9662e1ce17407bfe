package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// Nothing ends a read from a terminal; Ctrl-C ends who waits for it.
func TestInterruptedQuestion(t *testing.T) {
	silent, never := io.Pipe()
	defer never.Close()
	asked, ask := io.Pipe()
	ctx, interrupt := context.WithCancelCause(t.Context())
	e := &env{ctx: ctx, stdin: silent, stderr: ask}
	ended := make(chan error, 1)
	go func() { ended <- e.confirm("Sure? ") }()
	_, err := io.ReadFull(asked, make([]byte, len("Sure? ")))
	require.NoError(t, err)
	interrupted := errors.New("interrupted")
	interrupt(interrupted)
	require.ErrorIs(t, <-ended, interrupted)
}

func TestInput(t *testing.T) {
	e := &env{ctx: t.Context(), stdin: iotest.OneByteReader(strings.NewReader("yes\n"))}
	text, err := io.ReadAll(e.input())
	require.NoError(t, err)
	require.Equal(t, "yes\n", string(text))
}
