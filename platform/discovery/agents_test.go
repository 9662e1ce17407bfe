package discovery_test

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
)

func TestNextAgentIsUsed(t *testing.T) {
	// Something that takes connections and is no agent: it cuts each of them.
	var knocks atomic.Int64
	broken := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		knocks.Add(1)
		panic(http.ErrAbortHandler) // net/http's own way to cut a connection
	}))
	defer broken.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	agent := consultest.Start(t)

	client, err := discovery.NewClient(*api.DefaultConfig(), gone.URL, broken.URL, agent.Address)
	require.NoError(t, err)
	t.Run("AtOnce", func(t *testing.T) {
		_, err := client.Agent().Self()
		require.NoError(t, err)
		require.EqualValues(t, 1, knocks.Load())
	})
	t.Run("AndStays", func(t *testing.T) {
		for range 5 {
			_, err := client.Agent().Self()
			require.NoError(t, err)
		}
		require.EqualValues(t, 1, knocks.Load(), "the broken one was asked again")
	})
	t.Run("WithTheRequestsBody", func(t *testing.T) {
		client, err := discovery.NewClient(*api.DefaultConfig(), broken.URL, agent.Address)
		require.NoError(t, err)
		_, err = client.KV().Put(&api.KVPair{Key: "k", Value: []byte("whole")}, nil)
		require.NoError(t, err)
		pair, _, err := agent.Client.KV().Get("k", nil)
		require.NoError(t, err)
		require.Equal(t, "whole", string(pair.Value))
	})
	t.Run("NoneAnswers", func(t *testing.T) {
		client, err := discovery.NewClient(*api.DefaultConfig(), gone.URL, broken.URL)
		require.NoError(t, err)
		_, err = client.Agent().Self()
		require.ErrorContains(t, err, gone.Listener.Addr().String())
		require.ErrorContains(t, err, broken.Listener.Addr().String())
	})
	t.Run("AddressIsMalformed", func(t *testing.T) {
		_, err := discovery.NewClient(*api.DefaultConfig(), agent.Address, "gopher://x")
		require.ErrorContains(t, err, "gopher://x")
		_, err = discovery.NewClient(*api.DefaultConfig())
		require.Error(t, err)
	})
}

// An agent that hangs is left by the request that ran out of time, and not by
// one that its caller gave up.
func TestAgentsAreVerified(t *testing.T) {
	agent := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`"10.0.0.1:8300"`))
	}))
	defer agent.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: agent.Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, certificate, 0o600))

	ask := func() error {
		client, err := discovery.NewClient(*api.DefaultConfig(), agent.URL, agent.URL)
		require.NoError(t, err)
		_, err = client.Status().Leader()
		return err
	}
	require.ErrorContains(t, ask(), "certificate signed by unknown authority")
	t.Setenv("CONSUL_CACERT", ca)
	require.NoError(t, ask())
}

func TestHungAgentIsLeft(t *testing.T) {
	var asked atomic.Int64
	released := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-released:
		case <-r.Context().Done():
		}
	}))
	defer hung.Close()
	defer close(released)
	agent := consultest.Start(t)
	client, err := discovery.NewClient(*api.DefaultConfig(), hung.URL, agent.Address)
	require.NoError(t, err)
	ask := func(ctx context.Context) error {
		_, _, err := client.Health().Service("consul", "", true, (&api.QueryOptions{}).WithContext(ctx))
		return err
	}

	givenUp, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ask(givenUp) }()
	require.Eventually(t, func() bool { return asked.Load() == 1 }, 10*time.Second, 5*time.Millisecond)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)

	late, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, ask(late), context.DeadlineExceeded)
	require.EqualValues(t, 2, asked.Load(), "the first one, whose caller left, changed the agent")
	require.NoError(t, ask(t.Context()))
}

// An instance whose agent is gone is found again through the next one.
func TestInstanceRegistersWithTheNextAgent(t *testing.T) {
	first, second := consultest.Start(t), consultest.Start(t)
	client, err := discovery.NewClient(*api.DefaultConfig(), first.Address, second.Address)
	require.NoError(t, err)
	registered, err := discovery.Register(t.Context(), client, discovery.Registration{
		Service: "echo", Address: "127.0.0.1:9", Environment: "test", TTL: time.Second,
	})
	require.NoError(t, err)
	registered.SetReady(true)
	found := func(agent *consultest.Agent) bool {
		entries, _, err := agent.Client.Health().Service("echo", "", true, nil)
		return err == nil && len(entries) == 1
	}
	// Where the first one was slow to answer it is with the second.
	has, next := first, second
	require.Eventually(t, func() bool {
		if found(second) {
			has, next = second, first
		}
		return found(has)
	}, 10*time.Second, 10*time.Millisecond)
	has.Kill()
	require.Eventually(t, func() bool { return found(next) }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, registered.Deregister(t.Context()))
	require.False(t, found(next))
}
