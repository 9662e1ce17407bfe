package service

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// The faults that the harness itself answers with.
var (
	errInternal       = fault.New(fault.Internal, "INTERNAL", "internal error")
	errCanceled       = fault.New(fault.Canceled, "CANCELLED", "the caller went away")
	errDeadline       = fault.New(fault.DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed before the answer was there")
	errDependencyAway = fault.New(fault.Unavailable, "DEPENDENCY_UNAVAILABLE", "a service that this one needs is not available")
	errDependencyBusy = fault.New(fault.ResourceExhausted, "DEPENDENCY_BUSY", "a service that this one needs is busy")
)

// answer turns what a method returned into the status its caller sees:
//
//   - a fault keeps its code, reason, message and details; its cause stays;
//   - a status that the method made itself (status.Error) goes as it is;
//   - the end of the call's context is CANCELLED or DEADLINE_EXCEEDED;
//   - a wrapped status came from another service: UNAVAILABLE,
//     RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED keep their code, without the
//     text, so that callers may try again;
//   - anything else is INTERNAL: logged once, here, with the request id that
//     the caller is given instead of the text.
func (g *grpcServer) answer(c *call, err error) error {
	c.err = err
	if f, ok := fault.From(err); ok {
		return g.status(c, f)
	}
	if made, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // a wrapped one is another service's
		return complete(made.GRPCStatus(), c.requestID)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(c.over, context.DeadlineExceeded):
		return g.status(c, errDeadline)
	case c.over != nil:
		return g.status(c, errCanceled)
	}
	switch status.Code(err) { // looks into the chain
	case codes.Unavailable:
		return g.status(c, errDependencyAway)
	case codes.ResourceExhausted:
		return g.status(c, errDependencyBusy)
	case codes.DeadlineExceeded:
		return g.status(c, errDeadline)
	}
	return g.status(c, errInternal)
}

// retryHint is for faults that say that trying again may help and not when: the
// least that a client may take Retry-After for, and long enough for a database
// or an agent to come back.
const retryHint = time.Second

// status answers with f, and logs what the service itself is to blame for.
func (g *grpcServer) status(c *call, f *fault.Error) error {
	if f.Code == fault.Unavailable && f.RetryAfter == 0 {
		f = f.WithRetryAfter(retryHint)
	}
	// A panic was logged where it was caught.
	if (f.Code == fault.Internal || f.Code == fault.DataLoss || f.Code == fault.Unknown) && c.err != errPanicked { //nolint:errorlint // never wrapped
		g.log.Error("internal error", "method", c.method.name, "request_id", c.requestID, "error", c.err)
	}
	return grpcfault.ToStatus(f, c.requestID).Err()
}

// complete adds the reason and the request id to a status that has no details.
func complete(st *status.Status, requestID string) error {
	if st.Code() == codes.OK || len(st.Proto().GetDetails()) > 0 {
		return st.Err()
	}
	detailed, err := st.WithDetails(
		&errdetails.ErrorInfo{Reason: fault.Code(st.Code()).String(), Domain: grpcfault.Domain},
		&errdetails.RequestInfo{RequestId: requestID},
	)
	if err != nil {
		return st.Err()
	}
	return detailed.Err()
}
