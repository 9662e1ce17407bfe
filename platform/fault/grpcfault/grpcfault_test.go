package grpcfault_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// A code that is added to fault must be one of gRPC's, and survive the wire.
func TestRoundTripOfEveryCode(t *testing.T) {
	for _, code := range fault.Codes() {
		if code == fault.OK {
			continue
		}
		t.Run(code.String(), func(t *testing.T) {
			want := &fault.Error{
				Code: code, Reason: "SLOT_TAKEN", Message: "the slot is taken",
				Fields:     []fault.Field{{Path: "lines[2].slot", Description: "is taken", Rule: "slot.free"}},
				RetryAfter: 1500 * time.Millisecond,
				Meta:       map[string]string{"booking": "b1"},
			}
			// The cause stays here, whatever wraps the fault.
			st := grpcfault.ToStatus(fmt.Errorf("booking: %w", want.Because(errors.New("secret"))), "req-1")
			require.Equal(t, code.String(), nameOf(t, st.Code()))
			require.Equal(t, "the slot is taken", st.Message())
			require.Equal(t, "req-1", grpcfault.RequestID(st))
			require.Equal(t, 1500*time.Millisecond, grpcfault.RetryAfter(st))

			// Over the wire and back.
			got := grpcfault.FromStatus(status.FromProto(st.Proto()))
			require.Equal(t, want, got)
		})
	}
}

// nameOf is the code's name as google.rpc.Code has it.
func nameOf(t *testing.T, c codes.Code) string {
	for _, name := range []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
		"UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	} {
		var parsed codes.Code
		require.NoError(t, parsed.UnmarshalJSON([]byte(`"`+name+`"`)))
		if parsed == c {
			return name
		}
	}
	t.Fatalf("gRPC has no code %d", c)
	return ""
}

func TestToStatus(t *testing.T) {
	t.Run("Nil", func(t *testing.T) {
		require.Equal(t, codes.OK, grpcfault.ToStatus(nil, "id").Code())
	})
	t.Run("UnknownErrorSaysNothing", func(t *testing.T) {
		st := grpcfault.ToStatus(errors.New("pq: password hunter2"), "id")
		require.Equal(t, codes.Internal, st.Code())
		require.Equal(t, "internal error", st.Message())
		require.NotContains(t, st.Proto().String(), "hunter2")
		require.Equal(t, "INTERNAL", grpcfault.FromStatus(st).Reason)
		require.Equal(t, "id", grpcfault.RequestID(st))
	})
	t.Run("FaultWithCodeOKIsAnError", func(t *testing.T) {
		require.Equal(t, codes.Unknown, grpcfault.ToStatus(&fault.Error{Reason: "X"}, "").Code())
		require.Equal(t, codes.Unknown, grpcfault.ToStatus(&fault.Error{Code: 99, Reason: "X"}, "").Code())
	})
	t.Run("InvalidUTF8KeepsTheCode", func(t *testing.T) {
		st := grpcfault.ToStatus(fault.New(fault.NotFound, "GONE", "no").WithField("\xff", "", ""), "")
		require.Equal(t, codes.NotFound, st.Code())
	})
}

func TestFromStatus(t *testing.T) {
	t.Run("OK", func(t *testing.T) { require.Nil(t, grpcfault.FromStatus(status.New(codes.OK, ""))) })
	t.Run("WithoutDetails", func(t *testing.T) {
		f := grpcfault.FromStatus(status.New(codes.Unavailable, "no connection"))
		require.Equal(t, &fault.Error{Code: fault.Unavailable, Reason: "UNAVAILABLE", Message: "no connection"}, f)
	})
	t.Run("OtherDomain", func(t *testing.T) {
		st, err := status.New(codes.NotFound, "x").WithDetails(&errdetails.ErrorInfo{Domain: "example.com", Reason: "THEIRS"})
		require.NoError(t, err)
		require.Equal(t, "NOT_FOUND", grpcfault.FromStatus(st).Reason)
	})
	t.Run("UnknownCode", func(t *testing.T) {
		require.Equal(t, fault.Unknown, grpcfault.FromStatus(status.New(codes.Code(77), "x")).Code)
	})
}
