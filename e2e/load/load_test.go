package load

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
	c.bases[0].rests.Store(1) // long ago: one call tries it again
	_, err := c.Do(t.Context(), Request{Method: "GET", Path: "/", Idempotent: true}, nil)
	require.NoError(t, err)
	_, err = c.Do(t.Context(), Request{Method: "GET", Path: "/", Idempotent: true}, nil)
	require.NoError(t, err)
	require.Equal(t, 2, tries)
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
