package gateway_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/marquee-ads/marquee/platform/fault"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

// one admits a single call at a time.
type one struct{ underWay atomic.Int64 }

func (o *one) Enter() error {
	if o.underWay.Add(1) > 1 {
		o.underWay.Add(-1)
		return fault.New(fault.ResourceExhausted, "OVERLOADED", "full").WithRetryAfter(time.Second)
	}
	return nil
}

func (o *one) Leave() { o.underWay.Add(-1) }

func TestOverloadIsRefusedAtBothDoors(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	backend := startEcho(t, func(e *echo) {
		e.onEcho = func(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			if r.GetText() == "long" {
				arrived <- struct{}{}
				<-release
			}
			return &echov1.EchoResponse{}, nil
		}
	})
	admission := &one{}
	gw := startWith(t, backend, func(s *gateway.Surroundings) { s.Admission = admission })
	ended := make(chan error, 1)
	go func() {
		_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{Text: "long"})
		ended <- err
	}()
	receive(t, arrived)

	_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{})
	requireStatus(t, err, codes.ResourceExhausted, "OVERLOADED")
	response, body := gw.do(t, "GET", "/v1/echo/x", "")
	require.Equal(t, http.StatusTooManyRequests, response.StatusCode, body)
	require.Equal(t, "1", response.Header.Get("Retry-After"))
	// Streams are not counted.
	stream, err := gw.client.Repeat(t.Context(), &echov1.RepeatRequest{Text: "x", Count: 1})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)

	close(release)
	require.NoError(t, receive(t, ended))
	soon(t, "all as before", func() bool { return admission.underWay.Load() == 0 })
	_, err = gw.client.Echo(t.Context(), &echov1.EchoRequest{})
	require.NoError(t, err)
}
