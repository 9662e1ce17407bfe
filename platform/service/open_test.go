package service_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/authtest"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// countedKeys count how often they are asked.
type countedKeys struct {
	*auth.RemoteKeys
	asked atomic.Int64
}

func (k *countedKeys) SessionEnded(id string) bool {
	k.asked.Add(1)
	return k.RemoteKeys.SessionEnded(id)
}

// A stream that is open when its caller logs out ends as a new call would, whether
// its handler waits for a message or sends them, and no other does.
func TestLogOutEndsStreams(t *testing.T) {
	t.Parallel()
	account := authtest.Start(t)
	conn, err := grpc.NewClient(account.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	keys := &countedKeys{RemoteKeys: auth.NewRemoteKeys(conn, nil)}

	type end struct {
		account string
		err     error
	}
	handlers := make(chan end, 10)
	r := start(t, plaintext(), service.GRPCOptions{Keys: keys}, func(svc *service.Service, server *grpc.Server) {
		svc.AddBackground("signing keys", keys.Run)
		svc.Require("signing keys", func(context.Context) error { return keys.Available() })
		echo(&stub{tour: func(stream grpc.BidiStreamingServer[echov1.TourRequest, echov1.TourResponse]) error {
			caller, _ := auth.CallerFromContext(stream.Context())
			defer func() { handlers <- end{caller.AccountID, stream.Context().Err()} }()
			for {
				if err := stream.Send(&echov1.TourResponse{}); err != nil {
					return err
				}
				if caller.AccountID == "acc_sends" {
					continue
				}
				if _, err := stream.Recv(); err != nil {
					return err
				}
			}
		}})(svc, server)
	})
	r.ready(200)
	client := r.client()
	open := func(accountID string) (grpc.BidiStreamingClient[echov1.TourRequest, echov1.TourResponse], context.CancelFunc) {
		ctx, cancel := context.WithCancel(account.Context(t.Context(), t, "test", accountID))
		t.Cleanup(cancel)
		stream, err := client.Tour(ctx)
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)
		return stream, cancel
	}
	waits, _ := open("acc_waits")
	sends, _ := open("acc_sends")
	_, leaveOther := open("acc_other")

	began := time.Now()
	account.EndSession("acc_waits")
	account.EndSession("acc_sends")
	for _, stream := range []grpc.BidiStreamingClient[echov1.TourRequest, echov1.TourResponse]{waits, sends} {
		for err = nil; err == nil; {
			_, err = stream.Recv()
		}
		require.Equal(t, codes.Unauthenticated, status.Code(err), "%v", err)
		require.Equal(t, "SESSION_ENDED", grpcfault.FromStatus(status.Convert(err)).Reason)
		require.NotEmpty(t, grpcfault.RequestID(status.Convert(err)))
		require.Less(t, time.Since(began), auth.LogOutWithin)
		ended := receive(t, handlers)
		require.ErrorIs(t, ended.err, context.Canceled, "the handler of %s knows", ended.account)
		require.NotEqual(t, "acc_other", ended.account)
	}
	t.Logf("two streams ended %s after the log-out", time.Since(began).Round(time.Millisecond))
	require.Eventually(t, func() bool {
		_, metrics := r.get("/metrics")
		return strings.Contains(metrics, `grpc_server_call_seconds_count{code="UNAUTHENTICATED",method="/marquee.echo.v1.EchoService/Tour"} 2`)
	}, 5*time.Second, 10*time.Millisecond, "both are counted as what they ended with")

	// The third is still judged, once a second, and lives; then nothing is.
	before := keys.asked.Load()
	require.Eventually(t, func() bool { return keys.asked.Load() > before }, 5*time.Second, 10*time.Millisecond)
	require.Empty(t, handlers)
	leaveOther()
	require.Equal(t, "acc_other", receive(t, handlers).account)
	last := keys.asked.Load()
	require.Never(t, func() bool { return keys.asked.Load() > last+1 }, 3*time.Second, 100*time.Millisecond,
		"calls that ended are judged")
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	var value T
	select {
	case value = <-from:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came within 10 s")
	}
	return value
}
