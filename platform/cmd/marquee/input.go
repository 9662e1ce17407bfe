package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// input is standard input for who gives up waiting for it when the command is
// interrupted.
func (e *env) input() io.Reader { return interruptible{e.ctx, e.stdin} }

// interruptible reads until its context ends, which is then the error.
type interruptible struct {
	ctx  context.Context
	from io.Reader
}

// Read leaves a read that is under way behind when the context ends: nothing ends
// one from a terminal, and this program is about to.
func (i interruptible) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	read := make([]byte, len(p))
	done := make(chan result, 1)
	go func() {
		n, err := i.from.Read(read)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, read[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}

// confirm asks a person; anything but yes is an error.
func (e *env) confirm(question string) error {
	fmt.Fprint(e.stderr, question)
	answer, err := bufio.NewReader(e.input()).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	case "":
		return errors.New("nobody said yes: answer y, or give --yes")
	}
	return fmt.Errorf("the answer was %q", strings.TrimSpace(answer))
}
