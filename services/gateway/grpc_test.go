package gateway_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

func requireStatus(t testing.TB, err error, code codes.Code, reason string) *status.Status {
	t.Helper()
	st := status.Convert(err)
	require.Equal(t, code, st.Code(), "%v", err)
	require.Equal(t, reason, reasonOf(st), "%v", err)
	return st
}

func reasonOf(st *status.Status) string {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func TestNativeGRPC(t *testing.T) {
	backend := startEcho(t)
	gw := startOne(t, backend)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	t.Run("Unary", func(t *testing.T) {
		var header metadata.MD
		r, err := gw.client.Echo(ctx, &echov1.EchoRequest{Text: "hello"}, grpc.Header(&header))
		require.NoError(t, err)
		require.Equal(t, "hello", r.GetText())
		require.Equal(t, []string{backend.address}, header["x-served-by"])
		require.Len(t, header["x-request-id"], 1)
	})
	t.Run("ServerStream", func(t *testing.T) {
		stream, err := gw.client.Repeat(ctx, &echov1.RepeatRequest{Text: "x", Count: 1000})
		require.NoError(t, err)
		header, err := stream.Header()
		require.NoError(t, err)
		require.Equal(t, []string{backend.address}, header["x-served-by"])
		n := 0
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			require.Equal(t, "x", r.GetText())
			n++
		}
		require.Equal(t, 1000, n)
	})
	t.Run("ServerStreamWithoutMessages", func(t *testing.T) {
		stream, err := gw.client.Repeat(ctx, &echov1.RepeatRequest{Text: "x"})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("ClientStream", func(t *testing.T) {
		stream, err := gw.client.Join(ctx)
		require.NoError(t, err)
		for range 100 {
			require.NoError(t, stream.Send(&echov1.JoinRequest{Text: "ab"}))
		}
		r, err := stream.CloseAndRecv()
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("ab", 100), r.GetText())
	})
	t.Run("Bidirectional", func(t *testing.T) {
		stream, err := gw.client.Chat(ctx)
		require.NoError(t, err)
		for _, text := range []string{"one", "two", "three"} {
			require.NoError(t, stream.Send(&echov1.ChatRequest{Text: text}))
			r, err := stream.Recv()
			require.NoError(t, err)
			require.Equal(t, text, r.GetText())
		}
		require.NoError(t, stream.CloseSend())
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("Compressed", func(t *testing.T) {
		r, err := gw.client.Echo(ctx, &echov1.EchoRequest{Text: strings.Repeat("a", 100_000)}, grpc.UseCompressor(gzip.Name))
		require.NoError(t, err)
		require.Len(t, r.GetText(), 100_000)
	})
	t.Run("BigMessages", func(t *testing.T) {
		big := strings.Repeat("b", 3<<20)
		r, err := gw.client.Echo(ctx, &echov1.EchoRequest{Text: big})
		require.NoError(t, err)
		require.Equal(t, big, r.GetText())
	})
	t.Run("OversizedRequest", func(t *testing.T) {
		_, err := gw.client.Echo(ctx, &echov1.EchoRequest{Text: strings.Repeat("b", 5<<20)})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("OversizedRequestInStream", func(t *testing.T) {
		stream, err := gw.client.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, stream.Send(&echov1.ChatRequest{Text: strings.Repeat("b", 5<<20)}))
		_, err = stream.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("Health", func(t *testing.T) {
		r, err := healthv1.NewHealthClient(gw.conn).Check(ctx, &healthv1.HealthCheckRequest{})
		require.NoError(t, err)
		require.Equal(t, healthv1.HealthCheckResponse_SERVING, r.GetStatus())
	})
}

func TestUnknownMethodIsRefusedAtOnce(t *testing.T) {
	backend := startEcho(t)
	gw := startOne(t, backend)
	for _, path := range []string{"/no.such.Service/Method", "/marquee.echo.v1.EchoService/Nothing", "/marquee.echo.v1.EchoService/Internal"} {
		t.Run(path, func(t *testing.T) {
			began := time.Now()
			err := gw.conn.Invoke(t.Context(), path, &echov1.InternalRequest{}, &echov1.InternalResponse{})
			st := requireStatus(t, err, codes.Unimplemented, "METHOD_UNKNOWN")
			require.Contains(t, st.Message(), path)
			require.Less(t, time.Since(began), time.Second)
		})
	}
	require.Zero(t, backend.calls.Load(), "a method reserved for services was passed on")
}

func TestStatusAndMetadataPassBothWays(t *testing.T) {
	received := make(chan metadata.MD, 1)
	backend := startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			received <- md
			_ = grpc.SetHeader(ctx, metadata.Pairs("x-colour", "blue"))
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-cost", "7", "x-raw-bin", "\x00\xff"))
			st, err := status.New(codes.FailedPrecondition, "not now").WithDetails(&errdetails.ErrorInfo{Reason: "NOT_NOW", Domain: "marquee"})
			if err != nil {
				return nil, err
			}
			return nil, st.Err()
		}
	})
	gw := startOne(t, backend)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer x", "x-custom", "1", "x-custom", "2",
		"x-some-bin", "\x01\x02", "x-served-by", "me", "x-forwarded-for", "1.2.3.4", "x-marquee-caller", "root", "x-request-id", "req-1")
	var header, trailer metadata.MD
	_, err := gw.client.Echo(ctx, &echov1.EchoRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	st := requireStatus(t, err, codes.FailedPrecondition, "NOT_NOW")
	require.Equal(t, "not now", st.Message())
	require.Equal(t, []string{"blue"}, header["x-colour"])
	require.Equal(t, []string{"7"}, trailer["x-cost"])
	require.Equal(t, []string{"\x00\xff"}, trailer["x-raw-bin"])
	require.Equal(t, []string{"req-1"}, trailer["x-request-id"])

	md := <-received
	require.Equal(t, []string{"Bearer x"}, md["authorization"])
	require.Equal(t, []string{"1", "2"}, md["x-custom"])
	require.Equal(t, []string{"\x01\x02"}, md["x-some-bin"])
	require.Equal(t, []string{"req-1"}, md["x-request-id"])
	require.Equal(t, []string{"127.0.0.1"}, md["x-forwarded-for"])
	require.NotContains(t, md, "x-served-by")
	require.NotContains(t, md, "x-marquee-caller")
}

func TestRequestIDIsReplacedWhenMalformed(t *testing.T) {
	received := make(chan []string, 1)
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			received <- metadata.ValueFromIncomingContext(ctx, "x-request-id")
			return &echov1.EchoResponse{}, nil
		}
	}))
	for _, sent := range []string{strings.Repeat("x", 129), "with space"} {
		var header metadata.MD
		_, err := gw.client.Echo(metadata.AppendToOutgoingContext(t.Context(), "x-request-id", sent), &echov1.EchoRequest{}, grpc.Header(&header))
		require.NoError(t, err)
		got := <-received
		require.Len(t, got, 1)
		require.NotEqual(t, sent, got[0])
		require.Equal(t, got, header["x-request-id"])
	}
}

func TestServedByCanBeSwitchedOff(t *testing.T) {
	gw := startOne(t, startEcho(t), func(c *gateway.Config) { c.ServedBy = false })
	var header metadata.MD
	_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{}, grpc.Header(&header))
	require.NoError(t, err)
	require.NotContains(t, header, "x-served-by")
	stream, err := gw.client.Repeat(t.Context(), &echov1.RepeatRequest{Count: 1})
	require.NoError(t, err)
	streamHeader, err := stream.Header()
	require.NoError(t, err)
	require.NotContains(t, streamHeader, "x-served-by")
}

func TestDeadlines(t *testing.T) {
	left := make(chan time.Duration, 1)
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			deadline, ok := ctx.Deadline()
			if !ok {
				left <- -1
			} else {
				left <- time.Until(deadline)
			}
			if r.GetDelayMs() > 0 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &echov1.EchoResponse{}, nil
		}
	}), func(c *gateway.Config) { c.DefaultTimeout, c.MaxTimeout = 2*time.Second, 5*time.Second })
	for _, tt := range []struct {
		name        string
		asked       time.Duration
		least, most time.Duration
	}{
		{"DefaultWhenNoneIsSet", 0, time.Second, 2 * time.Second},
		{"TheCallersOwn", 3 * time.Second, 2 * time.Second, 3 * time.Second},
		{"AtMostTheMaximum", time.Hour, 4 * time.Second, 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.asked > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.asked)
				defer cancel()
			}
			_, err := gw.client.Echo(ctx, &echov1.EchoRequest{})
			require.NoError(t, err)
			got := <-left
			require.Greater(t, got, tt.least)
			require.LessOrEqual(t, got, tt.most)
		})
	}
	t.Run("Expired", func(t *testing.T) {
		_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{DelayMs: 1})
		requireStatus(t, err, codes.DeadlineExceeded, "DEADLINE_EXCEEDED")
		<-left
	})
	t.Run("ARequestThatNeverComes", func(t *testing.T) {
		stream, err := gw.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/marquee.echo.v1.EchoService/Echo")
		require.NoError(t, err)
		began := time.Now()
		err = stream.RecvMsg(&echov1.EchoResponse{})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Less(t, time.Since(began), 4*time.Second)
	})
	t.Run("NoRequest", func(t *testing.T) {
		stream, err := gw.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/marquee.echo.v1.EchoService/Echo")
		require.NoError(t, err)
		require.NoError(t, stream.CloseSend())
		requireStatus(t, stream.RecvMsg(&echov1.EchoResponse{}), codes.Unimplemented, "REQUEST_MISSING")
	})
}

func TestCancellationReachesTheService(t *testing.T) {
	arrived, cancelled := make(chan struct{}, 4), make(chan struct{}, 4)
	wait := func(ctx context.Context) error {
		arrived <- struct{}{}
		<-ctx.Done()
		cancelled <- struct{}{}
		return ctx.Err()
	}
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) { return nil, wait(ctx) }
		e.onRepeat = func(_ *echov1.RepeatRequest, s grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
			return wait(s.Context())
		}
		e.onChat = func(s grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
			return wait(s.Context())
		}
	}))
	for name, call := range map[string]func(context.Context) error{
		"Unary": func(ctx context.Context) error {
			_, err := gw.client.Echo(ctx, &echov1.EchoRequest{})
			return err
		},
		"ServerStream": func(ctx context.Context) error {
			s, err := gw.client.Repeat(ctx, &echov1.RepeatRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"Bidirectional": func(ctx context.Context) error {
			s, err := gw.client.Chat(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- call(ctx) }()
			receive(t, arrived)
			cancel()
			require.Equal(t, codes.Canceled, status.Code(receive(t, ended)))
			receive(t, cancelled)
		})
	}
}

func TestServiceMayEndAStreamFirst(t *testing.T) {
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onChat = func(s grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			s.SetTrailer(metadata.Pairs("x-why", "enough"))
			return status.Error(codes.OutOfRange, "enough")
		}
	}))
	stream, err := gw.client.Chat(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&echov1.ChatRequest{}))
	_, err = stream.Recv()
	require.Equal(t, codes.OutOfRange, status.Code(err))
	require.Equal(t, []string{"enough"}, stream.Trailer()["x-why"])
}

func TestHeaderArrivesBeforeTheFirstMessage(t *testing.T) {
	release := make(chan struct{})
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onChat = func(s grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
			if err := s.SendHeader(metadata.Pairs("x-early", "1")); err != nil {
				return err
			}
			<-release
			return nil
		}
	}))
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := gw.client.Chat(ctx)
	require.NoError(t, err)
	header, err := stream.Header()
	require.NoError(t, err)
	require.Equal(t, []string{"1"}, header["x-early"])
}

// receive takes from a channel, or fails.
func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}
