package gateway_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway/backend"
)

// account is a backend with a method that is not idempotent.
type account struct {
	accountv1.UnimplementedAccountServiceServer
	address string
	server  *grpc.Server
	onLogIn func(context.Context) (*accountv1.LogInResponse, error)
}

func startAccount(t testing.TB, onLogIn func(context.Context) (*accountv1.LogInResponse, error)) *account {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &account{address: listener.Addr().String(), server: grpc.NewServer(), onLogIn: onLogIn}
	accountv1.RegisterAccountServiceServer(a.server, a)
	reflection.Register(a.server)
	served := make(chan struct{})
	go func() { defer close(served); _ = a.server.Serve(listener) }()
	t.Cleanup(func() { a.server.Stop(); <-served })
	return a
}

func (a *account) LogIn(ctx context.Context, _ *accountv1.LogInRequest) (*accountv1.LogInResponse, error) {
	return a.onLogIn(ctx)
}

func TestIdempotentCallsSurviveAnInstance(t *testing.T) {
	// Every call is in an instance for a moment, so that the one that dies
	// takes some with it.
	slowly := func(e *echo) {
		e.onEcho = func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			select {
			case <-time.After(2 * time.Millisecond):
				return &echov1.EchoResponse{Text: r.GetText(), InstanceId: e.address}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	one, two, three := startEcho(t, slowly), startEcho(t, slowly), startEcho(t, slowly)
	r := newRegistry()
	r.set("echo", one.address, two.address, three.address)
	gw := startGateway(t, r)

	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	var done atomic.Int64
	failures := make(chan error, 64)
	for range 16 {
		workers.Go(func() {
			for ctx.Err() == nil {
				_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{Text: "x"})
				if err != nil {
					failures <- err
					return
				}
				done.Add(1)
			}
		})
	}
	soon(t, "calls to all three", func() bool { return min(one.calls.Load(), two.calls.Load(), three.calls.Load()) > 50 })
	one.server.Stop() // the registry does not know it yet
	at := done.Load()
	soon(t, "calls after the first death", func() bool { return done.Load() > at+300 })
	r.remove("echo", one.address)
	two.server.Stop()
	at = done.Load()
	soon(t, "calls after the second death", func() bool { return done.Load() > at+300 })
	cancel()
	workers.Wait()
	close(failures)
	for err := range failures {
		require.NoError(t, err)
	}
}

func TestOtherCallsAreNotRepeated(t *testing.T) {
	var calls atomic.Int64
	arrived := make(chan struct{}, 8)
	hang := func(ctx context.Context) (*accountv1.LogInResponse, error) {
		calls.Add(1)
		arrived <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	one, two := startAccount(t, hang), startAccount(t, hang)
	r := newRegistry()
	r.set("account", one.address, two.address)
	gw := startGateway(t, r)
	ended := make(chan error, 1)
	go func() {
		_, err := accountv1.NewAccountServiceClient(gw.conn).LogIn(t.Context(), &accountv1.LogInRequest{})
		ended <- err
	}()
	receive(t, arrived)
	one.server.Stop()
	two.server.Stop()
	st := requireStatus(t, receive(t, ended), codes.Unavailable, "SERVICE_UNAVAILABLE")
	require.NotContains(t, st.Message(), "127.0.0.1", "an address of the inside")
	require.EqualValues(t, 1, calls.Load())
}

func TestWhatIsRepeated(t *testing.T) {
	detailed := func(code codes.Code, delay time.Duration) error {
		st, err := status.New(code, "as asked").WithDetails(
			&errdetails.ErrorInfo{Reason: "AS_ASKED", Domain: "marquee"},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
		require.NoError(t, err)
		return st.Err()
	}
	for _, tt := range []struct {
		name  string
		err   error
		calls int64
	}{
		{"Unavailable", status.Error(codes.Unavailable, "gone"), 4},
		{"UnavailableForAMoment", detailed(codes.Unavailable, 10*time.Millisecond), 4},
		{"UnavailableForLonger", detailed(codes.Unavailable, time.Second), 1},
		{"Internal", status.Error(codes.Internal, "broken"), 1},
		{"ResourceExhausted", status.Error(codes.ResourceExhausted, "too much"), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			backend := startEcho(t, func(e *echo) {
				e.onEcho = func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) { return nil, tt.err }
			})
			gw := startOne(t, backend)
			_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{})
			require.Equal(t, status.Code(tt.err), status.Code(err))
			require.Equal(t, tt.calls, backend.calls.Load())
		})
	}
	t.Run("UntilItWorks", func(t *testing.T) {
		backend := startEcho(t)
		backend.onEcho = func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			if backend.calls.Load() < 4 {
				return nil, status.Error(codes.Unavailable, "gone")
			}
			return &echov1.EchoResponse{Text: "at last"}, nil
		}
		r, err := startOne(t, backend).client.Echo(t.Context(), &echov1.EchoRequest{})
		require.NoError(t, err)
		require.Equal(t, "at last", r.GetText())
	})
}

func TestBudgetBoundsRetries(t *testing.T) {
	e := startEcho(t, func(e *echo) {
		e.onEcho = func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			return nil, status.Error(codes.Unavailable, "gone")
		}
	})
	gw := startOne(t, e)
	const calls = 1500
	var workers sync.WaitGroup
	for range 250 {
		workers.Go(func() {
			for range calls / 250 {
				_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{})
				if status.Code(err) != codes.Unavailable {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	workers.Wait()
	extra := e.calls.Load() - calls
	require.GreaterOrEqual(t, extra, int64(500), "the burst was not used")
	// The burst, and a fifth of the calls.
	require.LessOrEqual(t, extra, int64(500+calls/5))
}

// TestWatchIsRepeatedUpToTheHeader tests what no method of the test services
// declares: a server-streaming call that is idempotent.
func TestWatchIsRepeatedUpToTheHeader(t *testing.T) {
	const path = "/marquee.echo.v1.EchoService/Repeat"
	e := startEcho(t)
	e.onRepeat = func(r *echov1.RepeatRequest, s grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
		if r.GetText() == "after" {
			if err := s.SendHeader(nil); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "gone")
		}
		if e.calls.Load() < 3 {
			return status.Error(codes.Unavailable, "gone")
		}
		return s.Send(&echov1.RepeatResponse{Text: r.GetText()})
	}
	r := newRegistry()
	r.set("echo", e.address)
	b, err := backend.New("echo", r.dial(t), 1<<20)
	require.NoError(t, err)
	defer b.Close()
	message := func(text string) *backend.Frame {
		return backend.NewFrame(append([]byte{0x0a, byte(len(text))}, text...))
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := b.Watch(ctx, path, true, message("x"))
	require.NoError(t, err)
	var got backend.Frame
	require.NoError(t, stream.RecvMsg(&got))
	require.Equal(t, "\x0a\x01x", string(got.Bytes()))
	got.Free()
	require.True(t, errors.Is(stream.RecvMsg(&got), io.EOF))
	require.EqualValues(t, 3, e.calls.Load())

	stream, err = b.Watch(ctx, path, true, message("after"))
	require.NoError(t, err)
	require.Equal(t, codes.Unavailable, status.Code(stream.RecvMsg(&got)))
	require.EqualValues(t, 4, e.calls.Load(), "repeated although the service had begun to answer")
}
