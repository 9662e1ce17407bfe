// Package echo implements marquee.echo.v1.EchoService: the service that the e2e
// suite and the bench deploy to exercise the platform.
package echo

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// maxJoined bounds what Join collects, in bytes.
const maxJoined = 1 << 20

// Server answers with what it was sent.
type Server struct {
	echov1.UnimplementedEchoServiceServer
	instanceID string
}

// New makes a server that says it is instanceID.
func New(instanceID string) *Server { return &Server{instanceID: instanceID} }

// Echo answers at once, later (delay_ms), or with the code asked for
// (fail_with, reason ECHO_FAILED).
func (s *Server) Echo(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	if err := wait(ctx, r.GetDelayMs()); err != nil {
		return nil, err
	}
	if code := fault.Code(r.GetFailWith()); code != fault.OK {
		return nil, fault.New(code, "ECHO_FAILED", "failing with %s, as asked", code)
	}
	return &echov1.EchoResponse{Text: r.GetText(), InstanceId: s.instanceID}, nil
}

// Whoami says on whose behalf, and by which service, it was called.
func (s *Server) Whoami(ctx context.Context, _ *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	peer, _ := mesh.PeerFromContext(ctx)
	return &echov1.WhoamiResponse{AccountId: caller.AccountID, CallingService: peer.Service}, nil
}

// Visit says with which role the caller is in the organisation.
func (s *Server) Visit(ctx context.Context, r *echov1.VisitRequest) (*echov1.VisitResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	role, _ := caller.Role(r.GetOrganisationId())
	return &echov1.VisitResponse{CallerId: caller.ID(), Role: role.Proto()}, nil
}

// Tour is Visit for each organisation that comes.
func (s *Server) Tour(stream grpc.BidiStreamingServer[echov1.TourRequest, echov1.TourResponse]) error {
	caller, ok := auth.CallerFromContext(stream.Context())
	if !ok {
		return auth.ErrTokenMissing
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		role, _ := caller.Role(r.GetPlace().GetOrganisationId())
		if err := stream.Send(&echov1.TourResponse{Role: role.Proto()}); err != nil {
			return err
		}
	}
}

// Repeat sends the text count times, or until the caller leaves.
func (s *Server) Repeat(r *echov1.RepeatRequest, stream grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
	response := &echov1.RepeatResponse{Text: r.GetText()}
	for i := int32(0); r.GetCount() == 0 || i < r.GetCount(); i++ {
		if i > 0 {
			if err := wait(stream.Context(), r.GetIntervalMs()); err != nil {
				return err
			}
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return nil
}

// Join answers with all texts. It fails with RESOURCE_EXHAUSTED (TOO_LONG)
// beyond 1 MiB.
func (s *Server) Join(stream grpc.ClientStreamingServer[echov1.JoinRequest, echov1.JoinResponse]) error {
	var all strings.Builder
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&echov1.JoinResponse{Text: all.String()})
		}
		if err != nil {
			return err
		}
		if all.Len()+len(r.GetText()) > maxJoined {
			return fault.New(fault.ResourceExhausted, "TOO_LONG", "the texts have more than %d bytes together", maxJoined)
		}
		all.WriteString(r.GetText())
	}
}

// Chat answers each text as it comes.
func (s *Server) Chat(stream grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&echov1.ChatResponse{Text: r.GetText()}); err != nil {
			return err
		}
	}
}

// Internal answers the services that may call it.
func (s *Server) Internal(context.Context, *echov1.InternalRequest) (*echov1.InternalResponse, error) {
	return &echov1.InternalResponse{}, nil
}

func wait(ctx context.Context, ms int32) error {
	if ms <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
