package service_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// What is too much is refused at once, with when to try again; health is not.
func TestOverload(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	impl := &stub{echo: func(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
		if r.GetText() == "long" {
			arrived <- struct{}{}
			<-release
		}
		return &echov1.EchoResponse{}, nil
	}}
	cfg := plaintext()
	cfg.MaxInFlight = 2
	r := start(t, cfg, service.GRPCOptions{Keys: auth.NoKeys{}}, echo(impl))
	client := r.client()
	ended := make(chan error, cfg.MaxInFlight)
	for range cfg.MaxInFlight {
		go func() {
			_, err := client.Echo(t.Context(), &echov1.EchoRequest{Text: "long"})
			ended <- err
		}()
		<-arrived
	}

	_, err := client.Echo(callCtx(t), &echov1.EchoRequest{})
	st := status.Convert(err)
	require.Equal(t, codes.ResourceExhausted, st.Code())
	var reason string
	var after time.Duration
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		case *errdetails.RetryInfo:
			after = d.GetRetryDelay().AsDuration()
		}
	}
	require.Equal(t, "OVERLOADED", reason)
	require.Equal(t, time.Second, after)
	_, err = healthpb.NewHealthClient(r.conn()).Check(callCtx(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err, "health is asked just then")
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, "marquee_calls_refused_total 1\n")
	require.Contains(t, metrics, "marquee_calls_in_flight 2\n")

	close(release)
	for range cfg.MaxInFlight {
		require.NoError(t, <-ended)
	}
	require.Eventually(t, func() bool {
		_, err := client.Echo(callCtx(t), &echov1.EchoRequest{})
		return err == nil
	}, 5*time.Second, 5*time.Millisecond, "all is as before")
}
