package load

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

func TestLoadIsOpenLoop(t *testing.T) {
	stall := make(chan struct{})
	release := time.AfterFunc(300*time.Millisecond, func() { close(stall) })
	defer release.Stop()
	r := Start(t.Context(), Plan{Rate: 100, Timeout: 5 * time.Second, Ops: []Op{
		{Name: "stalled", Call: func(ctx context.Context) (string, error) { <-stall; return "a", nil }},
	}})
	require.Eventually(t, func() bool { n, _ := r.Snapshot(); return n >= 60 }, 5*time.Second, 10*time.Millisecond)
	report := r.Stop()
	// Calls went on starting during the stall, and the first waited for all of it.
	require.Empty(t, report.Failed)
	require.GreaterOrEqual(t, report.Longest(), 290*time.Millisecond)
	require.Less(t, report.Quantile(.2), report.Longest()-100*time.Millisecond)
	require.Equal(t, report.Calls, report.ByInstance["a"])
}

func TestLoadCountsFailures(t *testing.T) {
	boom := errors.New("boom")
	r := Start(t.Context(), Plan{Rate: 200, Timeout: time.Second, Ops: []Op{
		{Name: "good", Call: func(ctx context.Context) (string, error) { return "", nil }},
		{Name: "bad", Call: func(ctx context.Context) (string, error) { return "", boom }},
	}})
	require.Eventually(t, func() bool { n, _ := r.Snapshot(); return n >= 20 }, 5*time.Second, 5*time.Millisecond)
	report := r.Stop()
	require.InDelta(t, report.Calls/2, len(report.Failed), 1)
	require.ErrorIs(t, report.Failed[0].Err, boom)
	require.Contains(t, report.String(), "failed bad")
}

func TestLoadBoundsCallsUnderWay(t *testing.T) {
	hang := make(chan struct{})
	r := Start(t.Context(), Plan{Rate: 200, Timeout: time.Minute, MaxInFlight: 3, Ops: []Op{
		{Name: "hung", Call: func(ctx context.Context) (string, error) { <-hang; return "", nil }},
	}})
	require.Eventually(t, func() bool { n, _ := r.Snapshot(); return n >= 5 }, 5*time.Second, 5*time.Millisecond)
	close(hang)
	report := r.Stop()
	require.NotEmpty(t, report.Failed)
	require.ErrorContains(t, report.Failed[0].Err, "not sent")
}

func TestRESTLeavesADeadGatewayAlone(t *testing.T) {
	var served atomic.Int64
	alive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { served.Add(1) }))
	defer alive.Close()
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	c := NewREST(dead.URL, alive.URL)
	defer c.Close()
	tries := 0
	c.http.Transport = countingTransport{c.http.Transport, dead.URL, &tries}
	for range 20 {
		_, err := c.Do(t.Context(), Request{Method: "GET", Path: "/", Idempotent: true}, nil)
		require.NoError(t, err)
	}
	require.EqualValues(t, 20, served.Load())
	require.Equal(t, 1, tries, "within its rest the dead one is tried once")
	(*c.bases.Load())[0].rests.Store(1) // long ago: one call tries it again
	_, err := c.Do(t.Context(), Request{Method: "GET", Path: "/", Idempotent: true}, nil)
	require.NoError(t, err)
	_, err = c.Do(t.Context(), Request{Method: "GET", Path: "/", Idempotent: true}, nil)
	require.NoError(t, err)
	require.Equal(t, 2, tries)
}

// A call is repeated at another gateway, also while others take turns.
func TestRESTRepeatsElsewhere(t *testing.T) {
	var refused, served atomic.Int64
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refused.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer away.Close()
	there := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) }))
	defer there.Close()
	c := NewREST(away.URL, there.URL)
	defer c.Close()
	const calls = 400
	report := Start(t.Context(), Plan{Rate: 2000, Calls: calls, Timeout: 5 * time.Second, Ops: []Op{{Name: "get", Call: func(ctx context.Context) (string, error) {
		return c.Do(ctx, Request{Method: "GET", Path: "/", Idempotent: true}, nil)
	}}}}).Wait()
	require.Empty(t, report.Failed)
	require.EqualValues(t, calls, served.Load())
	require.LessOrEqual(t, refused.Load(), int64(calls), "a call came back to the one that had refused it")
	require.Positive(t, refused.Load())
}

// Whoever is told that a gateway is gone does not go there, and remembers which
// of the others rest.
func TestRESTFollows(t *testing.T) {
	asked := make(map[string]int)
	var doors []string
	for range 3 {
		var url string
		door := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked[url]++ }))
		defer door.Close()
		url = door.URL
		doors = append(doors, url)
	}
	c := NewREST(doors[:2]...)
	defer c.Close()
	get := func() {
		t.Helper()
		_, err := c.Do(t.Context(), Request{Method: "GET", Path: "/"}, nil)
		require.NoError(t, err)
	}
	get()
	get()
	require.Equal(t, map[string]int{doors[0]: 1, doors[1]: 1}, asked)
	(*c.bases.Load())[0].rests.Store(time.Now().Add(time.Hour).UnixNano())
	c.Set(doors[0], doors[2])
	clear(asked)
	for range 4 {
		get()
	}
	require.Zero(t, asked[doors[1]], "calls go to one that is gone")
	require.Equal(t, 4, asked[doors[2]], "calls go to one that rests")
}

// unavailable answers that it is.
type unavailable struct {
	accountv1.UnimplementedAccountServiceServer
	asked atomic.Int64
}

func (u *unavailable) GetSigningKeys(context.Context, *accountv1.GetSigningKeysRequest) (*accountv1.GetSigningKeysResponse, error) {
	u.asked.Add(1)
	return nil, status.Error(codes.Unavailable, "not now")
}

func TestDialGRPC(t *testing.T) {
	for name, c := range map[string]struct {
		dial func(...string) (*grpc.ClientConn, error)
		want int64
	}{
		"Repeats": {DialGRPC, 4},
		"Once":    {DialGRPCOnce, 1},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			server, service := grpc.NewServer(), &unavailable{}
			accountv1.RegisterAccountServiceServer(server, service)
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(listener) })
			defer func() { server.Stop(); serving.Wait() }()
			conn, err := c.dial(listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			_, err = accountv1.NewAccountServiceClient(conn).GetSigningKeys(t.Context(), &accountv1.GetSigningKeysRequest{})
			require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
			require.Equal(t, c.want, service.asked.Load())
		})
	}
}

type countingTransport struct {
	http.RoundTripper
	base  string
	tries *int
}

func (c countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), c.base) {
		*c.tries++
	}
	return c.RoundTripper.RoundTrip(r)
}
