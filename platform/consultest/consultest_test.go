package consultest_test

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
)

func register(t *testing.T, client *api.Client, name string) {
	t.Helper()
	require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Port: 1}))
}

func instances(t *testing.T, client *api.Client, name string) int {
	t.Helper()
	entries, _, err := client.Health().Service(name, "", true, &api.QueryOptions{RequireConsistent: true})
	require.NoError(t, err)
	return len(entries)
}

func TestAgent(t *testing.T) {
	agent := consultest.Start(t)
	register(t, agent.Client, "one")
	require.Eventually(t, func() bool { return instances(t, agent.Client, "one") == 1 }, 5*time.Second, 10*time.Millisecond)

	t.Run("Restart keeps what was registered", func(t *testing.T) {
		agent.Kill()
		_, err := agent.Client.Agent().Self()
		require.Error(t, err)
		agent.Restart()
		require.Equal(t, 1, instances(t, agent.Client, "one"))
	})
	t.Run("Stop and Forget lose it", func(t *testing.T) {
		agent.Stop()
		agent.Forget()
		agent.Restart()
		services, err := agent.Client.Agent().Services()
		require.NoError(t, err)
		require.Empty(t, services)
	})
}

func TestWithACL(t *testing.T) {
	agent := consultest.Start(t, consultest.WithACL())
	register(t, agent.Client, "one")

	anonymous := api.DefaultConfig()
	anonymous.Address = agent.Address
	client, err := api.NewClient(anonymous)
	require.NoError(t, err)
	err = client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "two"})
	require.ErrorContains(t, err, "Permission denied")
}

func TestProxy(t *testing.T) {
	agent := consultest.Start(t)
	proxy := agent.Proxy()
	require.Equal(t, 0, instances(t, proxy.Client, "one"))
	require.Equal(t, 1, proxy.Count("/v1/health/"))
	require.Equal(t, 0, proxy.Count("/v1/catalog/"))

	t.Run("Fail", func(t *testing.T) {
		defer proxy.Heal()
		proxy.Fail("/v1/health/", 500)
		_, _, err := proxy.Client.Health().Service("one", "", true, nil)
		require.ErrorContains(t, err, "fault injected")
		_, _, err = proxy.Client.Catalog().Services(nil)
		require.NoError(t, err, "another path must not fail")
	})
	t.Run("Cut", func(t *testing.T) {
		defer proxy.Heal()
		proxy.Cut("")
		_, _, err := proxy.Client.Health().Service("one", "", true, nil)
		require.ErrorContains(t, err, "EOF")
	})
	t.Run("Hang, also a waiting query", func(t *testing.T) {
		_, meta, err := proxy.Client.Health().Service("one", "", true, nil)
		require.NoError(t, err)
		before := proxy.Count("/v1/health/")
		answered := make(chan error, 1)
		go func() {
			opts := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}
			_, _, err := proxy.Client.Health().Service("one", "", true, opts)
			answered <- err
		}()
		require.Eventually(t, func() bool { return proxy.Count("/v1/health/") > before }, 5*time.Second, time.Millisecond)
		proxy.Hang("/v1/health/")
		register(t, agent.Client, "one")

		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, _, err = proxy.Client.Health().Service("one", "", true, (&api.QueryOptions{}).WithContext(ctx))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		select {
		case <-answered:
			t.Fatal("a hanging query was answered")
		default:
		}
		proxy.Heal()
		require.NoError(t, <-answered)
	})
	t.Run("OffsetIndex", func(t *testing.T) {
		_, meta, err := proxy.Client.Health().Service("one", "", true, nil)
		require.NoError(t, err)
		proxy.OffsetIndex(1000)
		_, shifted, err := proxy.Client.Health().Service("one", "", true, nil)
		require.NoError(t, err)
		require.Equal(t, meta.LastIndex+1000, shifted.LastIndex)

		// The shifted index waits as the real one would.
		start := time.Now()
		opts := &api.QueryOptions{WaitIndex: shifted.LastIndex, WaitTime: 200 * time.Millisecond}
		_, _, err = proxy.Client.Health().Service("one", "", true, opts)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	})
}
