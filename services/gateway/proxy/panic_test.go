package proxy

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// TestPanics makes the door panic in all the places that no stage is around;
// without a catalog it does so when it looks something up.
func TestPanics(t *testing.T) {
	for _, tt := range []struct {
		name    string
		catalog *catalog.Catalog
		call    func(context.Context, *grpc.ClientConn) error
		where   string // in the stack
	}{
		{"Tap", nil, invoke, "Door).tap"},
		{"Stages", catalog.New(catalog.Options{Log: hclog.NewNullLogger()}), invoke, "Door).handle"},
		{"Reflection", nil, reflect, "catalogServices"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log safeBuffer
			door := New(Options{
				Catalog: tt.catalog, MaxMessage: 1 << 20,
				Log: hclog.New(&hclog.LoggerOptions{Output: &log}),
				Stages: stage.NewChain(func(stage.Handler) stage.Handler {
					return func(context.Context, *stage.Call) error {
						var nothing []error
						return nothing[0]
					}
				}),
			})
			if tt.name == "Reflection" {
				// Only the way to the handler is without a catalog otherwise.
				door.opts.Catalog = catalog.New(catalog.Options{Log: hclog.NewNullLogger()})
			}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			known := make(chan struct{})
			close(known)
			door.Serve(listener, known, func(err error) { t.Errorf("the door closed: %v", err) })
			conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			t.Cleanup(func() {
				conn.Close()
				require.NoError(t, door.Stop(context.Background()))
			})

			err = tt.call(t.Context(), conn)
			require.Equal(t, codes.Internal, status.Code(err))
			require.Equal(t, "internal error", status.Convert(err).Message())
			require.Contains(t, log.String(), tt.where, "the stack")
			if tt.catalog != nil || tt.name == "Reflection" {
				_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
				require.NoError(t, err, "it serves on")
			}
		})
	}
}

func invoke(ctx context.Context, conn *grpc.ClientConn) error {
	return conn.Invoke(ctx, "/a.Service/Method", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{})
}

func reflect(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	}); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// The goroutine that reads from the client has nobody around it.
func TestPanicInUpload(t *testing.T) {
	var log safeBuffer
	door := New(Options{MaxMessage: 1 << 20, Log: hclog.New(&hclog.LoggerOptions{Output: &log})})
	ctx, cancel := context.WithCancelCause(t.Context())
	var broken struct{ grpc.ServerStream } // its methods panic
	door.upload(&stage.Call{RequestID: "the-request"}, broken, nil, cancel)
	require.Error(t, ctx.Err(), "the call goes on without the client's messages")
	f, ok := fault.From(context.Cause(ctx))
	require.True(t, ok)
	require.Equal(t, fault.Internal, f.Code)
	require.Contains(t, log.String(), "the-request")
}

// safeBuffer is a log that several goroutines write and read.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
