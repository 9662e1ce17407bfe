package service

import (
	"errors"
	"runtime/debug"
)

// errPanicked is what the rest of the way sees of a panic, which is logged here
// with its stack.
var errPanicked = errors.New("the method panicked")

func (g *grpcServer) recovered(c *call, panicked any) error {
	g.log.Error("a method panicked", "method", c.method.name, "request_id", c.requestID,
		"panic", panicked, "stack", string(debug.Stack()))
	return errPanicked
}
