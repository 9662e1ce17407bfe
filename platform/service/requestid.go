package service

import (
	"context"
	"math/rand/v2"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// requestIDKey is the metadata key of the id that follows a request through
// all services, their logs, and the error a caller sees.
const requestIDKey = "x-request-id"

const maxRequestID = 128

// RequestID is the id of the request that the context belongs to; empty
// outside of one.
func RequestID(ctx context.Context) string {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.requestID
	}
	return ""
}

// incomingRequestID is the caller's id, or a new one when there is none or it
// is not fit for logs.
func incomingRequestID(ctx context.Context) string {
	if ids := metadata.ValueFromIncomingContext(ctx, requestIDKey); len(ids) == 1 && ValidRequestID(ids[0]) {
		return ids[0]
	}
	return NewRequestID()
}

// NewRequestID makes an id of 26 characters, 128 bits by chance, that nobody
// else has. It is no secret, so the cheap generator does.
func NewRequestID() string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	var id [26]byte
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 13 {
		id[i], id[13+i] = alphabet[a&31], alphabet[b&31]
		a, b = a>>5, b>>5
	}
	return string(id[:])
}

// ValidRequestID says whether an id that came from outside may be used: 1 to
// 128 printable ASCII characters without spaces.
func ValidRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}

// forwardRequestIDUnary and forwardRequestIDStream hand the id on to the
// services that are called on behalf of a request.
func forwardRequestIDUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(withOutgoingRequestID(ctx), method, req, reply, cc, opts...)
}

func forwardRequestIDStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(withOutgoingRequestID(ctx), desc, cc, method, opts...)
}

func withOutgoingRequestID(ctx context.Context) context.Context {
	id := RequestID(ctx)
	if id == "" {
		return ctx
	}
	// A method that set one itself meant it.
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get(requestIDKey)) > 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, requestIDKey, id)
}
